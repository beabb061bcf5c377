"""Roles of timm's vision transformers, plain and hierarchical: where each family keeps the usual parts."""

from __future__ import annotations

from typing import Any

from vispeft.models.roles.placement import Patterns

# maps into a gated MLP have two names
_FC1 = ("mlp.fc1_g | mlp.fc1_x", "mlp.fc1", "mlp.w0 | mlp.w1")
_FC2 = ("mlp.fc2", "mlp.w2")


def blocks_at(path: str, *, attn: str = "attn", fc1: tuple[str, ...] = _FC1, fc2: tuple[str, ...] = _FC2) -> Patterns:
    """Return the roles of transformer blocks at a path, with `qkv` or `q`, `k`, `v` in their attention.

    fc1, fc2: patterns inside a block, of which the first that names something counts
    """
    return {
        "blocks": path,
        "qkv": f"{path}.{attn}.qkv",
        "q": (f"{path}.{attn}.q_proj", f"{path}.{attn}.q"),
        "k": (f"{path}.{attn}.k_proj", f"{path}.{attn}.k"),
        "v": (f"{path}.{attn}.v_proj", f"{path}.{attn}.v"),
        "kv": f"{path}.{attn}.kv",
        "proj": f"{path}.{attn}.proj",
        "fc1": _inside(path, fc1),
        "fc2": _inside(path, fc2),
    }


def both(*tables: Patterns) -> Patterns:
    """Return the roles of models with blocks at several places: each role is the first pattern of every table."""
    roles = dict.fromkeys(role for table in tables for role in table)
    return {role: " | ".join(_first(table[role]) for table in tables if role in table) for role in roles}


def _inside(path: str, alternatives: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(" | ".join(f"{path}.{part.strip()}" for part in each.split("|")) for each in alternatives)


def _first(pattern: str | tuple[str, ...]) -> str:
    return pattern if isinstance(pattern, str) else pattern[0]


_ONE_MLP: dict[str, Any] = {"fc1": ("mlp.fc1",), "fc2": ("mlp.fc2",)}
_PLAIN = blocks_at("blocks.*")
_ENCODER = blocks_at("encoder.blocks.*")
_LAYERS = blocks_at("layers.*.blocks.*")
_STAGES = blocks_at("stages.*.blocks.*")

TRANSFORMERS: dict[str, Patterns] = {
    "vision_transformer": _PLAIN,
    "vision_transformer_hybrid": _PLAIN,
    "vision_transformer_relpos": _PLAIN,
    "vision_transformer_sam": _PLAIN,
    "vitamin": _PLAIN,
    "deit": _PLAIN,
    "eva": _PLAIN,
    "beit": _PLAIN,
    "hiera": _PLAIN,
    "hieradet_sam2": _PLAIN,
    "naflexvit": _PLAIN,
    "deepseek_vit": _ENCODER,
    "qwen3_vit": _ENCODER,
    "gemma4_vit": {
        "blocks": "encoder.blocks.*",
        **{name: f"encoder.blocks.*.attn.{name}_proj.linear" for name in ("q", "k", "v")},
        "proj": "encoder.blocks.*.attn.o_proj.linear",
        "fc1": "encoder.blocks.*.mlp.gate_proj.linear | encoder.blocks.*.mlp.up_proj.linear",
        "fc2": "encoder.blocks.*.mlp.down_proj.linear",
    },
    # the class token has blocks of its own
    "cait": {
        **both(blocks_at("blocks.*", **_ONE_MLP), blocks_at("blocks_token_only.*", **_ONE_MLP)),
        **{name: f"blocks_token_only.*.attn.{name}" for name in ("q", "k", "v")},
    },
    "xcit": {
        **both(blocks_at("blocks.*", **_ONE_MLP), blocks_at("cls_attn_blocks.*", **_ONE_MLP)),
        **{name: f"cls_attn_blocks.*.attn.{name}" for name in ("q", "k", "v")},
    },
    "convit": {**blocks_at("blocks.*", **_ONE_MLP), "qk": "blocks.*.attn.qk"},
    "crossvit": blocks_at("blocks.*.blocks.*.*", **_ONE_MLP),
    "pit": blocks_at("transformers.*.blocks.*", **_ONE_MLP),
    "nest": blocks_at("levels.*.transformer_encoder.*", **_ONE_MLP),
    "tnt": {
        "blocks": "blocks.*",
        **{name: f"blocks.*.attn_in.{name} | blocks.*.attn_out.{name}" for name in ("qk", "v", "proj")},
        **{name: f"blocks.*.mlp_in.{name} | blocks.*.mlp.{name}" for name in ("fc1", "fc2")},
    },
    "volo": {
        **both(blocks_at("network.*.*", **_ONE_MLP), blocks_at("post_network.*", **_ONE_MLP)),
        "q": "post_network.*.attn.q",
        "kv": "post_network.*.attn.kv",
        "v": "network.*.*.attn.v",
    },
    "twins": blocks_at("blocks.*.*", **_ONE_MLP),
    "swin_transformer": _LAYERS,
    "swin_transformer_v2": _LAYERS,
    "swin_transformer_v2_cr": _STAGES,
    "mvitv2": _STAGES,
    "davit": blocks_at("stages.*.blocks.*.*", **_ONE_MLP),
    "gcvit": _STAGES,
    "pvt_v2": _STAGES,
    "coat": {
        "blocks": "serial_blocks*.* | parallel_blocks.*",
        **{
            name: f"serial_blocks*.*.factoratt_crpe.{name} | parallel_blocks.*.factoratt_crpe*.{name}"
            for name in ("qkv", "proj")
        },
        **{name: f"serial_blocks*.*.mlp.{name} | parallel_blocks.*.mlp*.{name}" for name in ("fc1", "fc2")},
    },
    "focalnet": {
        "blocks": "layers.*.blocks.*",
        "proj": "layers.*.blocks.*.modulation.proj",
        "fc1": "layers.*.blocks.*.mlp.fc1",
        "fc2": "layers.*.blocks.*.mlp.fc2",
    },
    "visformer": {
        "blocks": "stage*.*",
        "qkv": "stage*.*.attn.qkv",
        "proj": "stage*.*.attn.proj",
        # its middle convolution, if any, is grouped
        "fc1": "stage*.*.mlp.conv1",
        "fc2": "stage*.*.mlp.conv3",
    },
    "mlp_mixer": {
        "blocks": "blocks.*",
        "fc1": "blocks.*.mlp_tokens.fc1 | blocks.*.mlp_channels.fc1",
        "fc2": "blocks.*.mlp_tokens.fc2 | blocks.*.mlp_channels.fc2",
    },
}
