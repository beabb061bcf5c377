"""Configurations of transformers' Mask2Former, read as the arguments that build the same model here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vispeft.errors import CheckpointError
from vispeft.models.checkpoint_metadata import CheckpointMetadata
from vispeft.models.input_rule import InputRule
from vispeft.models.weight_directories import CONFIG, check_values, read_directory_config, read_directory_processor

_NUM_STAGES = 4
# our model's values, which are transformers' defaults: a configuration that differs is refused
_FIXED: Mapping[str, Any] = {
    "pre_norm": False,
    "enforce_input_projection": False,
    "common_stride": 4,
    "feature_strides": [4, 8, 16, 32],
    "activation_function": "relu",
    "dropout": 0.0,
}
_FIXED_SWIN: Mapping[str, Any] = {
    "num_channels": 3,
    "hidden_act": "gelu",
    "use_absolute_embeddings": False,
    "hidden_dropout_prob": 0.0,
    "layer_norm_eps": 1e-5,
}
_FIXED_RESNET: Mapping[str, Any] = {
    "num_channels": 3,
    "embedding_size": 64,
    "hidden_act": "relu",
    "downsample_in_first_stage": False,
    "downsample_in_bottleneck": False,
}
# width, depths and window of Swin Transformers by their names in timm
_SWINS = {
    (96, (2, 2, 6, 2), 7): "swin_tiny_patch4_window7_224",
    (96, (2, 2, 18, 2), 7): "swin_small_patch4_window7_224",
    (128, (2, 2, 18, 2), 7): "swin_base_patch4_window7_224",
    (128, (2, 2, 18, 2), 12): "swin_base_patch4_window12_384",
    (192, (2, 2, 18, 2), 7): "swin_large_patch4_window7_224",
    (192, (2, 2, 18, 2), 12): "swin_large_patch4_window12_384",
}
# block and depths of ResNets by their names in timm
_RESNETS = {
    ("basic", (2, 2, 2, 2)): "resnet18",
    ("basic", (3, 4, 6, 3)): "resnet34",
    ("bottleneck", (3, 4, 6, 3)): "resnet50",
    ("bottleneck", (3, 4, 23, 3)): "resnet101",
    ("bottleneck", (3, 8, 36, 3)): "resnet152",
}
_WIDTHS = {"basic": (64, 128, 256, 512), "bottleneck": (256, 512, 1024, 2048)}


def read_directory_metadata(path: Path) -> CheckpointMetadata:
    """Return the arguments of `build_model` and the image size of a directory.

    Raises CheckpointError for a configuration of another model, or one that this family does not have.
    """
    arguments = _arguments_of(read_directory_config(path), str(path / CONFIG))
    processor = read_directory_processor(path)
    if not processor:
        return CheckpointMetadata(arguments)
    rule = InputRule.of(processor)
    statistics = {"pixel_mean": rule.pixel_mean, "pixel_std": rule.pixel_std}
    backbone_options = {**arguments["backbone_options"], **statistics}
    return CheckpointMetadata({**arguments, "backbone_options": backbone_options}, rule.image_size)


def _arguments_of(config: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Return the arguments of `build_model` but for the number of classes. source: name of the file, for errors"""
    if config.get("model_type") != "mask2former":
        raise CheckpointError(
            f"{source} is the configuration of a {config.get('model_type')!r} model, not of mask2former. Choose "
            "another `name` or other weights."
        )
    check_values(config, _FIXED, source, family="mask2former")
    dim = config.get("hidden_dim", 256)
    check_values(config, {"feature_size": dim}, source, family="mask2former")
    return {
        "name": "mask2former",
        **_backbone_arguments(config.get("backbone_config"), source),
        "dim": dim,
        "mask_dim": config.get("mask_feature_size", 256),
        "ffn_dim": config.get("dim_feedforward", 2048),
        "pixel_decoder_ffn_dim": config.get("encoder_feedforward_dim", 1024),
        "pixel_decoder_layers": config.get("encoder_layers", 6),
        # transformers counts the predictions before the first layer too
        "decoder_layers": config.get("decoder_layers", 10) - 1,
        "num_heads": config.get("num_attention_heads", 8),
        "num_queries": config.get("num_queries", 100),
    }


def _backbone_arguments(config: Any, source: str) -> dict[str, Any]:
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind == "swin":
        return _swin_arguments(config, source)
    if kind == "resnet":
        return _resnet_arguments(config, source)
    if kind == "timm_backbone":
        check_values(config, {"num_channels": 3, "output_stride": None}, source, family="mask2former")
        return {"backbone": config["backbone"], "backbone_options": {}, "backbone_norm": False}
    raise CheckpointError(
        f"`backbone_config` of {source} must be of a swin, resnet or timm_backbone model, but is of {kind!r}. Use "
        "`name: transformers` with these weights."
    )


def _swin_arguments(config: Mapping[str, Any], source: str) -> dict[str, Any]:
    check_values(config, _FIXED_SWIN, source, family="mask2former")
    options = {
        "patch_size": config.get("patch_size", 4),
        "embed_dim": config.get("embed_dim", 96),
        "depths": list(config.get("depths", (2, 2, 6, 2))),
        "num_heads": list(config.get("num_heads", (3, 6, 12, 24))),
        "window_size": config.get("window_size", 7),
        "mlp_ratio": config.get("mlp_ratio", 4.0),
        "qkv_bias": config.get("qkv_bias", True),
        "drop_path_rate": config.get("drop_path_rate", 0.1),
    }
    name = _SWINS.get((options["embed_dim"], tuple(options["depths"]), options["window_size"]))
    return {"backbone": name or "swin_tiny_patch4_window7_224", "backbone_options": options, "backbone_norm": True}


def _resnet_arguments(config: Mapping[str, Any], source: str) -> dict[str, Any]:
    check_values(config, _FIXED_RESNET, source, family="mask2former")
    block = config.get("layer_type", "bottleneck")
    depths = tuple(config.get("depths", (3, 4, 6, 3)))
    widths = tuple(config.get("hidden_sizes", _WIDTHS["bottleneck"]))
    if block not in _WIDTHS or len(depths) != _NUM_STAGES:
        raise CheckpointError(f"`backbone_config` of {source} must be a ResNet of four stages that timm has.")
    options: dict[str, Any] = {}
    if (block, depths) not in _RESNETS:
        options["layers"] = list(depths)
    if widths != _WIDTHS[block]:
        options["channels"] = [width // (4 if block == "bottleneck" else 1) for width in widths]
    plain = "resnet50" if block == "bottleneck" else "resnet18"
    return {
        "backbone": _RESNETS.get((block, depths), plain),
        "backbone_options": options,
        "backbone_norm": False,
    }
