"""Roles of timm's convolutional networks: where each family keeps the usual parts.

`conv1`, `conv2` and `conv3` are a block's convolutions in order; depthwise ones have no role.
"""

from __future__ import annotations

from vispeft.models.roles.placement import Patterns

_STAGE = "stages.*.blocks.*"


def _convs(path: str, **names: str | tuple[str, ...]) -> Patterns:
    """Return the roles of blocks at a path and of the modules in them. names: role -> names inside the block"""
    return {"blocks": path, **{role: _below(path, name) for role, name in names.items()}}


def _below(path: str, name: str | tuple[str, ...]) -> str | tuple[str, ...]:
    if isinstance(name, tuple):
        return tuple(str(_below(path, each)) for each in name)
    return " | ".join(f"{path}.{part.strip()}" for part in name.split("|"))


_NUMBERED = {f"conv{i}": (f"conv{i}.conv", f"conv{i}") for i in (1, 2, 3)}
# in selective kernels a convolution has several paths
_RESNET = _convs("layer*.*", **{role: (f"{role}.paths.*.conv | {role}.conv", role) for role in _NUMBERED})
_MLP = {"fc1": "mlp.fc1", "fc2": "mlp.fc2"}
# inverted residuals, and the inverted bottlenecks and mobile attention of MobileNetV4
_INVERTED = {
    **_convs(
        "blocks.*.*",
        conv1="conv_exp | pw_exp.conv | conv_pw",
        conv2="conv_pwl | pw_proj.conv",
        q="attn.query.proj",
        k="attn.key.proj",
        v="attn.value.proj",
        proj="attn.output.proj",
    )
}
_BYOB = {
    **_convs(
        "stages.*.*",
        conv1=("conv1_1x1.conv | conv1_kxk.conv", "conv_kxk.conv"),
        conv3="conv3_1x1.conv",
    ),
    "qkv": ("stages.*.*.transformer.*.attn.qkv", "stages.*.*.self_attn.qkv"),
    "q": "stages.*.*.self_attn.q",
    "kv": "stages.*.*.self_attn.kv",
    "proj": "stages.*.*.transformer.*.attn.proj",
    "fc1": "stages.*.*.transformer.*.mlp.fc1",
    "fc2": "stages.*.*.transformer.*.mlp.fc2",
}

CONVNETS: dict[str, Patterns] = {
    "convnext": _convs(_STAGE, **_MLP),
    "inception_next": _convs(_STAGE, **_MLP),
    "mambaout": _convs(_STAGE, fc1="fc1", fc2="fc2"),
    "resnet": _RESNET,
    "res2net": _RESNET,
    "resnest": _RESNET,
    "sknet": _RESNET,
    "senet": _RESNET,
    "resnetv2": _convs(_STAGE, **_NUMBERED),
    "regnet": _convs("s*.b*", **_NUMBERED),
    "nfnet": _convs("stages.*.*", conv1="conv1", conv2="conv2", conv3="conv3"),
    "efficientnet": _INVERTED,
    "mobilenetv3": _INVERTED,
    "hardcorenas": _INVERTED,
    "ghostnet": _convs("blocks.*.*", conv1="ghost1.primary_conv.0", conv2="ghost2.primary_conv.0"),
    "repghost": _convs("blocks.*.*", conv1="ghost1.primary_conv.0", conv2="ghost2.primary_conv.0"),
    "rexnet": _convs("features.*", conv1="conv_exp.conv", conv2="conv_pwl.conv"),
    "byobnet": _BYOB,
    "byoanet": _BYOB,
    "mobilevit": _BYOB,
    "cspnet": _convs(_STAGE, **{role: each[0] for role, each in _NUMBERED.items()}),
    "cspnext": _convs("stages.*.*.blocks.*", conv1="conv1.conv", conv2="conv2.pointwise_conv.conv"),
    "hgnet": _convs(_STAGE, conv1="layers.*.conv"),
    "hrnet": {
        "blocks": "layer1.* | stage*.*.branches.*.* | incre_modules.*.*",
        **{
            f"conv{i}": f"layer1.*.conv{i} | stage*.*.branches.*.*.conv{i} | incre_modules.*.*.conv{i}"
            for i in (1, 2, 3)
        },
    },
    "tresnet": _convs("body.layer*.*", **{role: each[0] for role, each in _NUMBERED.items()}),
    "densenet": _convs("features.denseblock*.denselayer*", conv1="conv1", conv2="conv2"),
    "vovnet": _convs(_STAGE, conv1="conv_mid.*.conv", conv2="conv_concat.conv"),
    "starnet": _convs("stages.*.*", fc1="f1.conv | f2.conv", fc2="g.conv"),
    "fasternet": _convs(_STAGE, conv1="spatial_mixing.partial_conv3", fc1="mlp.0", fc2="mlp.3"),
}
