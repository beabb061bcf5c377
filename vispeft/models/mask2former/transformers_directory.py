"""Directories of transformers' `Mask2FormerForUniversalSegmentation`, written from our model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vispeft.errors import CheckpointError
from vispeft.io.json_files import write_json
from vispeft.io.tensors import own_copies, write_tensors
from vispeft.models.backbones.swin import PaddedSwinBlock
from vispeft.models.backbones.timm_encoder import Backbone
from vispeft.models.mask2former.decoder import DecoderLayer
from vispeft.models.mask2former.model import Mask2Former
from vispeft.models.mask2former.transformers_names import to_transformers
from vispeft.models.weight_directories import CONFIG, WEIGHTS

_PROCESSOR = "preprocessor_config.json"
_NO_OBJECT_WEIGHT = 0.1


def write_transformers_directory(
    model: Mask2Former, directory: Path, *, class_names: Sequence[str] | None = None, image_size: int | None = None
) -> None:
    """Write a model without deltas as a directory that transformers reads: configuration, weights, image processor.

    class_names: of the class head, by index; numbers where it is None
    image_size: longer side of the network input in pixels, for the image processor

    Raises CheckpointError for a backbone that transformers cannot have.
    """
    names = list(class_names or map(str, range(model.num_classes)))
    is_swin = _is_swin(model.backbone)
    config = {
        "architectures": ["Mask2FormerForUniversalSegmentation"],
        "model_type": "mask2former",
        "dtype": "float32",
        "backbone_config": _swin_config(model.backbone) if is_swin else _timm_config(model.backbone),
        **_head_config(model),
        "id2label": {str(index): name for index, name in enumerate(names)},
        "label2id": {name: index for index, name in enumerate(names)},
    }
    tensors = to_transformers(model.state_dict(), is_swin=is_swin)
    tensors.update(_unused(model, is_swin=is_swin))
    directory.mkdir(parents=True, exist_ok=True)
    write_tensors(directory / WEIGHTS, own_copies(tensors), {"format": "pt"})
    write_json(directory / _PROCESSOR, _processor_config(model, image_size), raises=CheckpointError)
    write_json(directory / CONFIG, config, raises=CheckpointError)


def _head_config(model: Mask2Former) -> dict[str, Any]:
    decoder, pixel_decoder = model.decoder, model.pixel_decoder
    layer, pixel_layer = decoder.layers[0], pixel_decoder.layers[0]
    assert isinstance(layer, DecoderLayer)
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
        "num_queries": model.num_queries,
        "no_object_weight": _NO_OBJECT_WEIGHT,
    }


def _is_swin(backbone: Backbone) -> bool:
    return any(isinstance(module, PaddedSwinBlock) for module in backbone.body.modules())


def _swin_config(backbone: Backbone) -> dict[str, Any]:
    stages = [getattr(backbone.body, f"layers_{index}").blocks for index in range(4)]
    first = stages[0][0]
    return {
        "model_type": "swin",
        "patch_size": backbone.body.patch_embed.patch_size[0],
        "embed_dim": first.attn.dim,
        "depths": [len(blocks) for blocks in stages],
        "num_heads": [blocks[0].attn.num_heads for blocks in stages],
        "window_size": first.window_size[0],
        "mlp_ratio": first.mlp.fc1.out_features / first.mlp.fc1.in_features,
        "qkv_bias": first.attn.qkv.bias is not None,
        "out_features": [f"stage{index}" for index in range(1, 5)],
    }


def _timm_config(backbone: Backbone) -> dict[str, Any]:
    if backbone.is_plain or backbone.is_channels_last or len(backbone.channels) != 4:
        raise CheckpointError(
            f"Mask2Former over {backbone.name} cannot be written as a directory of transformers, which has no such "
            "backbone. Write a checkpoint (.safetensors) instead."
        )
    indices = [info["index"] for info in backbone.body.feature_info.get_dicts()][-4:]
    return {
        "model_type": "timm_backbone",
        "backbone": backbone.name,
        "out_indices": indices,
        "features_only": True,
        "num_channels": 3,
    }


def _unused(model: Mask2Former, *, is_swin: bool) -> dict[str, Tensor]:
    """Return tensors of transformers' model that no prediction depends on."""
    weight = torch.ones(model.num_classes + 1)
    weight[-1] = _NO_OBJECT_WEIGHT
    unused = {"criterion.empty_weight": weight}
    if is_swin:
        name = "model.pixel_level_module.encoder.swin.layernorm"
        width = model.backbone.channels[-1]
        unused.update({f"{name}.weight": torch.ones(width), f"{name}.bias": torch.zeros(width)})
    return unused


def _processor_config(model: Mask2Former, image_size: int | None) -> dict[str, Any]:
    size = {} if image_size is None else {"size": {"shortest_edge": image_size, "longest_edge": image_size}}
    return {
        "image_processor_type": "Mask2FormerImageProcessor",
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "rescale_factor": 1 / 255,
        "image_mean": [value / 255 for value in model.pixel_mean],
        "image_std": [value / 255 for value in model.pixel_std],
        "size_divisor": model.size_divisor,
        "num_labels": model.num_classes,
        "ignore_index": 255,
        **size,
    }
