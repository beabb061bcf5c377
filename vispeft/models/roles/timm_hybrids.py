"""Roles of timm's models with convolutions and attention: where each family keeps the usual parts."""

from __future__ import annotations

from vispeft.models.roles.placement import Patterns
from vispeft.models.roles.timm_transformers import blocks_at

_BLOCK = "stages.*.blocks.*"
_MLP = {"fc1": f"{_BLOCK}.mlp.fc1", "fc2": f"{_BLOCK}.mlp.fc2"}

HYBRIDS: dict[str, Patterns] = {
    "maxxvit": {
        "blocks": _BLOCK,
        **{
            role: f"{_BLOCK}.attn.{name} | {_BLOCK}.attn_block.{name} | {_BLOCK}.attn_grid.{name}"
            for role, name in (("qkv", "attn.qkv"), ("proj", "attn.proj"), ("fc1", "mlp.fc1"), ("fc2", "mlp.fc2"))
        },
        # between them a depthwise convolution
        "conv1": f"{_BLOCK}.conv.conv1_1x1",
        "conv3": f"{_BLOCK}.conv.conv3_1x1",
    },
    "edgenext": {"blocks": _BLOCK, "qkv": f"{_BLOCK}.xca.qkv", "proj": f"{_BLOCK}.xca.proj", **_MLP},
    "efficientformer": {
        "blocks": _BLOCK,
        "qkv": f"{_BLOCK}.token_mixer.qkv",
        "proj": f"{_BLOCK}.token_mixer.proj",
        **_MLP,
    },
    "efficientformer_v2": {
        "blocks": _BLOCK,
        **{name: f"{_BLOCK}.token_mixer.{name}.conv" for name in ("q", "k", "v", "proj")},
        **{name: f"{_BLOCK}.mlp.{name}.conv" for name in ("fc1", "fc2")},
    },
    "efficientvit_mit": {
        "blocks": _BLOCK,
        "qkv": f"{_BLOCK}.context_module.main.qkv.conv",
        "proj": f"{_BLOCK}.context_module.main.proj.conv",
        "conv1": f"{_BLOCK}.main.inverted_conv.conv | {_BLOCK}.local_module.main.inverted_conv.conv",
        "conv2": f"{_BLOCK}.main.point_conv.conv | {_BLOCK}.local_module.main.point_conv.conv",
    },
    "efficientvit_msra": {
        "blocks": _BLOCK,
        "qkv": f"{_BLOCK}.mixer.m.attn.qkvs.*.conv",
        "proj": f"{_BLOCK}.mixer.m.attn.proj.1.conv",
        "fc1": f"{_BLOCK}.ffn*.m.pw1.conv",
        "fc2": f"{_BLOCK}.ffn*.m.pw2.conv",
    },
    "efficientvim": {
        "blocks": _BLOCK,
        "proj": f"{_BLOCK}.mixer.out_proj.conv",
        **{name: f"{_BLOCK}.ffn.{name}.conv" for name in ("fc1", "fc2")},
    },
    "fastvit": {
        "blocks": _BLOCK,
        "qkv": f"{_BLOCK}.token_mixer.qkv",
        "proj": f"{_BLOCK}.token_mixer.proj",
        **_MLP,
    },
    "iformer": {
        "blocks": _BLOCK,
        **{name: f"{_BLOCK}.mixer.module.{name}.c" for name in ("q", "k", "proj")},
    },
    "levit": {
        "blocks": _BLOCK,
        "qkv": (f"{_BLOCK}.attn.qkv.linear", f"{_BLOCK}.attn.qkv.conv"),
        "proj": (f"{_BLOCK}.attn.proj.ln.linear", f"{_BLOCK}.attn.proj.ln.conv"),
        "fc1": (f"{_BLOCK}.mlp.ln1.linear", f"{_BLOCK}.mlp.ln1.conv"),
        "fc2": (f"{_BLOCK}.mlp.ln2.linear", f"{_BLOCK}.mlp.ln2.conv"),
    },
    "metaformer": {
        "blocks": _BLOCK,
        "qkv": f"{_BLOCK}.token_mixer.qkv",
        "proj": f"{_BLOCK}.token_mixer.proj",
        "conv1": f"{_BLOCK}.token_mixer.pwconv1",
        "conv2": f"{_BLOCK}.token_mixer.pwconv2",
        **_MLP,
    },
    "mobilenetv5": {
        "blocks": "blocks.*.*",
        **{
            role: f"blocks.*.*.attn.{name}.proj"
            for role, name in (("q", "query"), ("k", "key"), ("v", "value"), ("proj", "output"))
        },
        "conv1": "blocks.*.*.pw_exp.conv | blocks.*.*.conv_exp",
        "conv2": "blocks.*.*.pw_proj.conv | blocks.*.*.conv_pwl",
    },
    "nextvit": {
        "blocks": _BLOCK,
        **{name: f"{_BLOCK}.e_mhsa.{name}" for name in ("q", "k", "v")},
        "proj": f"{_BLOCK}.e_mhsa.proj | {_BLOCK}.mhca.projection",
        **_MLP,
    },
    "repvit": {
        "blocks": _BLOCK,
        "fc1": f"{_BLOCK}.channel_mixer.conv1.c",
        "fc2": f"{_BLOCK}.channel_mixer.conv2.c",
    },
    "shvit": {
        "blocks": _BLOCK,
        "qkv": f"{_BLOCK}.mixer.m.qkv.c",
        "proj": f"{_BLOCK}.mixer.m.proj.1.c",
        "fc1": f"{_BLOCK}.ffn.m.pw1.c",
        "fc2": f"{_BLOCK}.ffn.m.pw2.c",
    },
    "swiftformer": {
        "blocks": _BLOCK,
        "q": f"{_BLOCK}.attn.to_query",
        "k": f"{_BLOCK}.attn.to_key",
        "proj": f"{_BLOCK}.attn.final",
        "fc1": f"{_BLOCK}.linear.fc1",
        "fc2": f"{_BLOCK}.linear.fc2",
        "conv1": f"{_BLOCK}.pwconv1",
        "conv2": f"{_BLOCK}.pwconv2",
    },
    "tiny_vit": {
        **blocks_at(_BLOCK, fc1=("mlp.fc1",), fc2=("mlp.fc2",)),
        "conv1": f"{_BLOCK}.conv1.conv",
        "conv3": f"{_BLOCK}.conv3.conv",
    },
}
