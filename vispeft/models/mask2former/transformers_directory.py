"""Our model as transformers' Mask2Former: configurations, and the tensors of its directory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import timm
import torch
from timm.layers.drop import DropPath
from timm.models.resnet import BasicBlock, Bottleneck
from torch import Tensor, nn

from vispeft.errors import CheckpointError
from vispeft.models.backbones.swin import PaddedSwinBlock
from vispeft.models.backbones.timm_encoder import Backbone
from vispeft.models.layers.deformable_attention import DeformableAttention
from vispeft.models.layers.pixel_decoder import PixelDecoder
from vispeft.models.mask2former.decoder import DecoderLayer, Mask2FormerDecoder
from vispeft.models.mask2former.transformers_names import to_transformers

_NUM_STAGES = 4
# number of sampling points of a level, which transformers' configuration does not have
_NUM_POINTS = 4
_RESNET_STAGES = [f"layer{number}" for number in range(1, _NUM_STAGES + 1)]
_STAGES = [f"stage{number}" for number in range(1, _NUM_STAGES + 1)]
_IMAGE_CHANNELS = 3
# weight of "no object" in transformers' class loss, published
_NO_OBJECT_WEIGHT = 0.1


def configuration_of(
    backbone: Backbone, pixel_decoder: PixelDecoder, decoder: Mask2FormerDecoder, *, class_names: Sequence[str]
) -> dict[str, Any]:
    """Return the configuration from which transformers builds the same model.

    class_names: by class index

    Raises CheckpointError for a model that transformers does not have.
    """
    return {
        "architectures": ["Mask2FormerForUniversalSegmentation"],
        "model_type": "mask2former",
        "dtype": "float32",
        "backbone_config": _backbone_config(backbone),
        **_head_config(pixel_decoder, decoder),
        "id2label": {str(index): name for index, name in enumerate(class_names)},
        "label2id": {name: index for index, name in enumerate(class_names)},
    }


def processor_of(backbone: Backbone, *, num_classes: int, image_size: int | None) -> dict[str, Any]:
    """Return the configuration of an image processor that prepares images as ours are.

    image_size: longer side of the network input in pixels
    """
    size = {} if image_size is None else {"size": {"shortest_edge": image_size, "longest_edge": image_size}}
    return {
        "image_processor_type": "Mask2FormerImageProcessor",
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "rescale_factor": 1 / 255,
        "image_mean": [value / 255 for value in backbone.pixel_mean],
        "image_std": [value / 255 for value in backbone.pixel_std],
        "size_divisor": backbone.size_divisor,
        "num_labels": num_classes,
        "ignore_index": 255,
        **size,
    }


def tensors_of(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors of a directory from those of our model.

    Those that no prediction depends on are added; without them transformers would leave random values there.

    config: from `configuration_of`
    """
    backbone: Mapping[str, Any] = config["backbone_config"]
    tensors = to_transformers(state, backbone["model_type"])
    class_weights = torch.ones(len(config["id2label"]) + 1)
    class_weights[-1] = _NO_OBJECT_WEIGHT
    tensors["criterion.empty_weight"] = class_weights
    if backbone["model_type"] == "swin":
        width = backbone["embed_dim"] * 2 ** (_NUM_STAGES - 1)
        norm = "model.pixel_level_module.encoder.swin.layernorm"
        tensors.update({f"{norm}.weight": torch.ones(width), f"{norm}.bias": torch.zeros(width)})
    return tensors


def _head_config(pixel_decoder: PixelDecoder, decoder: Mask2FormerDecoder) -> dict[str, Any]:
    layer, pixel_layer = decoder.layers[0], pixel_decoder.layers[0]
    assert isinstance(layer, DecoderLayer)
    attention = pixel_layer.get_submodule("self_attn")
    assert isinstance(attention, DeformableAttention)
    if attention.num_points != _NUM_POINTS:
        raise CheckpointError(
            f"transformers has deformable attention with {_NUM_POINTS} points alone, but this model has "
            f"{attention.num_points}. Write a checkpoint (.safetensors) instead."
        )
    dim = decoder.class_embed.in_features
    return {
        "feature_size": dim,
        "hidden_dim": dim,
        "mask_feature_size": pixel_decoder.mask_features.out_channels,
        "encoder_feedforward_dim": pixel_layer.get_parameter("linear1.weight").shape[0],
        "dim_feedforward": layer.linear1.out_features,
        "encoder_layers": len(pixel_decoder.layers),
        "decoder_layers": len(decoder.layers) + 1,
        "num_attention_heads": layer.self_attn.num_heads,
        "num_queries": decoder.query_feat.num_embeddings,
        "no_object_weight": _NO_OBJECT_WEIGHT,
    }


def _backbone_config(backbone: Backbone) -> dict[str, Any]:
    has_norms = not all(isinstance(norm, nn.Identity) for norm in backbone.norms)
    is_rgb = len(backbone.pixel_mean) == _IMAGE_CHANNELS
    if is_rgb and has_norms and any(isinstance(module, PaddedSwinBlock) for module in backbone.body.modules()):
        return _swin_config(backbone.body)
    if is_rgb and not has_norms and not backbone.is_plain and not backbone.is_channels_last:
        config = _resnet_config(backbone.body) or _timm_config(backbone)
        if config is not None:
            return config
    raise CheckpointError(
        f"Mask2Former over {backbone.name} with its options cannot be written as a directory of transformers, which "
        "has no such backbone. Write a checkpoint (.safetensors) instead."
    )


def _swin_config(body: Any) -> dict[str, Any]:
    stages = [body.get_submodule(f"layers_{index}").blocks for index in range(_NUM_STAGES)]
    first, last_drop = stages[0][0], stages[-1][-1].drop_path2
    return {
        "model_type": "swin",
        "patch_size": body.patch_embed.patch_size[0],
        "embed_dim": first.attn.dim,
        "depths": [len(blocks) for blocks in stages],
        "num_heads": [blocks[0].attn.num_heads for blocks in stages],
        "window_size": first.attn.window_size[0],
        "mlp_ratio": first.mlp.fc1.out_features / first.mlp.fc1.in_features,
        "qkv_bias": first.attn.qkv.bias is not None,
        # it grows linearly from zero at the first block to this at the last
        "drop_path_rate": last_drop.drop_prob if isinstance(last_drop, DropPath) else 0.0,
        "out_features": _STAGES,
    }


def _resnet_config(body: nn.Module) -> dict[str, Any] | None:
    """Return the configuration of transformers' ResNet; None for a body that is not built as that."""
    children = dict(body.named_children())
    stages = [list(children[name].children()) for name in _RESNET_STAGES if name in children]
    if len(stages) < _NUM_STAGES or not isinstance(stages[0][0], BasicBlock | Bottleneck):
        return None
    is_basic = isinstance(stages[0][0], BasicBlock)
    expansion = stages[0][0].expansion
    depths = [len(blocks) for blocks in stages]
    widths = [blocks[-1].get_parameter("conv2.weight").shape[0] for blocks in stages]
    if not _is_built_as(body, "resnet18" if is_basic else "resnet50", layers=depths, channels=widths):
        return None
    return {
        "model_type": "resnet",
        "num_channels": _IMAGE_CHANNELS,
        "embedding_size": 64,
        "hidden_sizes": [expansion * width for width in widths],
        "depths": depths,
        "layer_type": "basic" if is_basic else "bottleneck",
        "hidden_act": "relu",
        "out_features": _STAGES,
    }


def _timm_config(backbone: Backbone) -> dict[str, Any] | None:
    """Return the configuration of a timm model by its name; None where the backbone's options change it."""
    if len(backbone.channels) != _NUM_STAGES or not _is_built_as(backbone.body, backbone.name):
        return None
    return {
        "model_type": "timm_backbone",
        "backbone": backbone.name,
        "out_indices": [info["index"] for info in backbone.body.feature_info.get_dicts()][-_NUM_STAGES:],
        "features_only": True,
        "num_channels": _IMAGE_CHANNELS,
    }


def _is_built_as(body: nn.Module, name: str, **options: Any) -> bool:
    """Tell whether timm builds the same modules and tensors by a name and options."""
    with torch.device("meta"):
        built = timm.create_model(name, features_only=True, **options)
    shapes, wanted = ({n: x.shape for n, x in model.state_dict().items()} for model in (built, body))
    return repr(built) == repr(body) and shapes == wanted
