"""Any timm backbone as a source of multi-scale maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
from timm.layers.format import Format
from torch import Tensor, nn

from vispeft.errors import ConfigError
from vispeft.models.backbones.swin import pad_before_shift
from vispeft.models.backbones.timm_models import Source, channels_of, create, padded_side, timm_module_of
from vispeft.models.layers.pyramid import ChannelNorm, SimpleFeaturePyramid, pyramid_divisor
from vispeft.models.roles.placement import prefixed
from vispeft.models.roles.timm import encoder_roles

# timm modules whose models interpolate their position embedding to any input size
_DYNAMIC_SIZE = ("timm.models.vision_transformer", "timm.models.eva", "timm.models.deit")
_LEAST_DIVISOR = 32
_FEATURES = {"features_only": True}
_SWIN = "timm.models.swin_transformer"
_ANY_SIZE = {"strict_img_size": False, "always_partition": True}


class Backbone(nn.Module):
    """Maps at about the strides 4, 8, 16 and 32, finest first, from any timm model that gives features.

    Hierarchical models by their own stages; plain ViTs (one stride throughout) by a simple feature pyramid on the
    last block. `output_norm` adds a LayerNorm to each map, as published models over Swin have. A Swin Transformer then
    also pads its maps as they do and takes images of any size.
    """

    def __init__(
        self,
        name: str,
        *,
        pretrained: bool = False,
        weights: Path | None = None,
        image_size: int | None = None,
        output_norm: bool = False,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.name = name
        image_channels, options = channels_of(name, options or {})
        source = Source(name, pretrained, weights)
        if output_norm and timm_module_of(name, options) == _SWIN:
            body = create(source, {**_ANY_SIZE, **options}, form=_FEATURES)
            pad_before_shift(body)
        else:
            body = _create(source, image_size, options)
        channels, strides = list(body.feature_info.channels()), list(body.feature_info.reduction())
        self.is_plain = len(set(strides)) == 1
        self.strides: list[float] = strides[-4:]
        self.body = body
        self.is_channels_last = Format(getattr(body, "output_fmt", Format.NCHW)) == Format.NHWC
        self.pyramid: nn.Module = nn.Identity()
        self.channels: list[int] = channels[-4:]
        self.size_divisor = _divisor(body)
        if self.is_plain:
            pyramid = SimpleFeaturePyramid(channels[-1], strides[-1])
            self.pyramid, self.channels, self.strides = pyramid, pyramid.channels, pyramid.strides
        self.norms = nn.ModuleList(ChannelNorm(c) if output_norm else nn.Identity() for c in self.channels)
        self.recomputes = False
        self.pixel_mean, self.pixel_std = image_channels.pixel_mean, image_channels.pixel_std

    def forward(self, images: Tensor) -> list[Tensor]:
        """Maps [B, C_i, H / s_i, W / s_i] of images [B, C, H, W], normalised, H and W multiples of `size_divisor`."""
        return self.finish(self.body(images))

    def finish(self, body_maps: Sequence[Tensor]) -> list[Tensor]:
        """Return the backbone's maps, made from the body's: from its last in a plain model, else from its last four."""
        maps = list(body_maps)
        if self.is_channels_last:
            maps = [x.permute(0, 3, 1, 2) for x in maps]
        maps = self.pyramid(maps[-1]) if self.is_plain else maps[-4:]
        return [norm(x) for norm, x in zip(self.norms, maps, strict=True)]

    def set_activation_checkpointing(self, enable: bool = True) -> None:
        """Recompute block activations in backward instead of keeping them (timm's own switch).

        Raises ConfigError where timm has no such switch for the model.
        """
        body: Any = self.body
        try:
            (body.model if self.is_plain else body).set_grad_checkpointing(enable)
        except (AssertionError, AttributeError, TypeError) as error:
            raise ConfigError(f"timm has no switch for activation checkpointing for {self.name!r}.") from error
        self.recomputes = enable

    def roles(self, name: str) -> dict[str, str]:
        """Return the roles `encoder.*` with patterns from the model's root. name: of the backbone in its model"""
        roles = encoder_roles(timm.model_entrypoint(self.name.split(".")[0]).__module__, self.body)
        return prefixed(roles, f"{name}.body")


def _create(source: Source, image_size: int | None, options: dict[str, Any]) -> Any:
    family = timm_module_of(source.name, options)
    if family in _DYNAMIC_SIZE:
        options = {"dynamic_img_size": True, **options}
    elif image_size is not None and "img_size" not in options and _has_fixed_size(source.name):
        return _create_at(source, image_size, options)
    return create(source, options, form=_FEATURES)


def _create_at(source: Source, image_size: int, options: dict[str, Any]) -> Any:
    """A model of fixed input size, built for images of `image_size` pixels as they are padded."""
    side = padded_side(image_size, _LEAST_DIVISOR)
    body = create(source, {"img_size": side, **options}, form=_FEATURES)
    # known only now: strides of more than 32, or of no power of two
    wanted = padded_side(image_size, _divisor(body))
    return body if wanted == side else create(source, {"img_size": wanted, **options}, form=_FEATURES)


def _divisor(body: Any) -> int:
    """Return the number of which the input's height and width must be multiples."""
    strides = list(body.feature_info.reduction())
    return pyramid_divisor(strides[-1]) if len(set(strides)) == 1 else max(_LEAST_DIVISOR, strides[-1])


def _has_fixed_size(name: str) -> bool:
    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    return config is not None and bool(config.fixed_input_size)
