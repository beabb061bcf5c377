"""Configurations of transformers' EoMT, read as the arguments that build the same model here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vispeft.errors import CheckpointError
from vispeft.models.checkpoint_metadata import CheckpointMetadata
from vispeft.models.input_rule import InputRule
from vispeft.models.weight_directories import CONFIG, check_values, read_directory_config, read_directory_processor

# widths of the ViTs that timm has a name for
_WIDTHS = {384: "small", 768: "base", 1024: "large"}
_FIXED: Mapping[str, Any] = {"num_channels": 3, "hidden_act": "gelu", "hidden_dropout_prob": 0.0}
# timm's values
_DINOV2_EPS, _DINOV3_EPS, _DINOV3_THETA = 1e-6, 1e-5, 100.0


def read_directory_metadata(path: Path) -> CheckpointMetadata:
    """Return the arguments of `build_model` and the image size of a directory.

    Raises CheckpointError for a configuration of another model, or one that timm's ViTs do not have.
    """
    config, source = read_directory_config(path), str(path / CONFIG)
    kind = config.get("model_type")
    if kind not in ("eomt", "eomt_dinov3"):
        raise CheckpointError(
            f"{source} is the configuration of a {kind!r} model, not of eomt. Choose another `name` or other weights."
        )
    check_values(config, _FIXED, source, family="eomt")
    patch = _side(config.get("patch_size", 16))
    check_values(config, {"num_upscale_blocks": max(1, patch.bit_length() - 3)}, source, family="eomt")
    backbone, options = (_dinov2 if kind == "eomt" else _dinov3)(config, source)
    sizes = {
        "patch_size": patch,
        "img_size": _side(config.get("image_size", 640)),
        "depth": config.get("num_hidden_layers", 24),
        "embed_dim": config.get("hidden_size", 1024),
        "num_heads": config.get("num_attention_heads", 16),
    }
    processor = read_directory_processor(path)
    rule = InputRule.of(processor) if processor else None
    statistics = {"pixel_mean": rule.pixel_mean, "pixel_std": rule.pixel_std} if rule else {}
    arguments = {
        "name": "eomt",
        "backbone": backbone,
        "backbone_options": {**sizes, **options, **statistics},
        "num_queries": config.get("num_queries", 200),
        "num_blocks": config.get("num_blocks", 4),
    }
    return CheckpointMetadata(arguments, rule.image_size if rule else None)


def _dinov2(config: Mapping[str, Any], source: str) -> tuple[str, dict[str, Any]]:
    """Return timm's model and its options for a ViT of DINOv2."""
    check_values(config, {"layer_norm_eps": _DINOV2_EPS}, source, family="eomt")
    width, ratio = config.get("hidden_size", 1024), config.get("mlp_ratio", 4)
    registers = config.get("num_register_tokens", 4)
    if registers not in (0, 4):
        check_values(config, {"num_register_tokens": 4}, source, family="eomt")
    form = "reg4_dinov2" if registers else "dinov2"
    if not config.get("use_swiglu_ffn", False):
        return f"vit_{_WIDTHS.get(width, 'small')}_patch14_{form}", {"mlp_ratio": ratio}
    # transformers' rounding; timm counts both halves, and rounds down
    hidden = (int(int(width * ratio) * 2 / 3) + 7) // 8 * 8
    return f"vit_giant_patch14_{form}", {"mlp_ratio": (2 * hidden + 0.25) / width}


def _dinov3(config: Mapping[str, Any], source: str) -> tuple[str, dict[str, Any]]:
    """Return timm's model and its options for a ViT of DINOv3."""
    wanted = {"key_bias": False, "proj_bias": True, "mlp_bias": True, "num_register_tokens": 4}
    check_values(config, {"layer_norm_eps": _DINOV3_EPS, "use_gated_mlp": False, **wanted}, source, family="eomt")
    biases = bool(config.get("query_bias", True))
    check_values(config, {"value_bias": biases}, source, family="eomt")
    rotary = config.get("rope_parameters") or {}
    check_values(rotary, {"rope_theta": _DINOV3_THETA}, f"`rope_parameters` of {source}", family="eomt")
    width = config.get("hidden_size", 1024)
    name = f"vit_{_WIDTHS.get(width, 'small')}_patch16_dinov3{'_qkvb' if biases else ''}"
    return name, {"mlp_ratio": config.get("intermediate_size", 4096) / width}


def _side(value: Any) -> int:
    """Return the side of a square that a configuration gives as one number or as two."""
    return int(value[0] if isinstance(value, list | tuple) else value)
