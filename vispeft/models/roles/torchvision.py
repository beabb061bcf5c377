"""Roles of torchvision's models: those of encoders, and those of detection and segmentation heads.

Its ViT and Swin read the projections of their attention without calling them: these roles are parameters.
"""

from __future__ import annotations

from vispeft.models.roles.placement import Patterns

_SWIN = "features.*.*"
_VIT = "encoder.layers.*"

ENCODERS: dict[str, Patterns] = {
    "torchvision.models.resnet": {
        "encoder.blocks": "layer*.*",
        **{f"encoder.conv{i}": f"layer*.*.conv{i}" for i in (1, 2, 3)},
    },
    "torchvision.models.vision_transformer": {
        "encoder.blocks": _VIT,
        "encoder.qkv": f"{_VIT}.self_attention.in_proj_weight",
        "encoder.proj": f"{_VIT}.self_attention.out_proj.weight",
        "encoder.fc1": f"{_VIT}.mlp.0",
        "encoder.fc2": f"{_VIT}.mlp.3",
    },
    "torchvision.models.swin_transformer": {
        "encoder.qkv": f"{_SWIN}.attn.qkv.weight",
        "encoder.proj": f"{_SWIN}.attn.proj.weight",
        "encoder.fc1": f"{_SWIN}.mlp.0",
        "encoder.fc2": f"{_SWIN}.mlp.3",
    },
    # between them a depthwise convolution
    "torchvision.models.convnext": {
        "encoder.blocks": f"{_SWIN}.block",
        "encoder.fc1": f"{_SWIN}.block.3",
        "encoder.fc2": f"{_SWIN}.block.5",
    },
}

_RCNN: Patterns = {
    "pyramid": "backbone.fpn",
    "heads": "rpn.head | roi_heads.box_head | roi_heads.box_predictor | roi_heads.mask_head | roi_heads.mask_predictor",
    "class_head": "roi_heads.box_predictor.cls_score",
    "new": "backbone.fpn | rpn.head | roi_heads",
}
_ONE_STAGE: Patterns = {
    "pyramid": "backbone.fpn",
    "heads": "head",
    "class_head": "head.classification_head.cls_logits",
    "new": "backbone.fpn | head",
}
_DENSE: Patterns = {"heads": "classifier | aux_classifier", "new": "classifier | aux_classifier"}

MODELS: dict[str, Patterns] = {
    "torchvision.models.detection.faster_rcnn": _RCNN,
    "torchvision.models.detection.fcos": _ONE_STAGE,
    "torchvision.models.detection.mask_rcnn": _RCNN,
    "torchvision.models.detection.retinanet": _ONE_STAGE,
    "torchvision.models.segmentation.deeplabv3": _DENSE,
    "torchvision.models.segmentation.fcn": _DENSE,
    "torchvision.models.segmentation.lraspp": _DENSE,
}
