"""Any timm backbone as a source of multi-scale maps."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers.format import Format
from torch import Tensor, nn

from vispeft.errors import ConfigError
from vispeft.models.backbones.weights import create_with_weights, unfit_tensor
from vispeft.models.layers.pyramid import ChannelNorm, SimpleFeaturePyramid, pyramid_divisor
from vispeft.models.roles.timm import encoder_roles, flattened

# timm modules whose models interpolate their position embedding to any input size
_DYNAMIC_SIZE = ("timm.models.vision_transformer", "timm.models.eva", "timm.models.deit")
_LEAST_DIVISOR = 32
_BUILD_ERRORS = (
    *(AssertionError, AttributeError, IndexError, KeyError, OSError),
    *(RuntimeError, TypeError, ValueError, ZeroDivisionError),
)


class Backbone(nn.Module):
    """Maps at about the strides 4, 8, 16 and 32, finest first, from any timm model that gives features.

    Hierarchical models by their own stages; plain ViTs (one stride throughout) by a simple feature pyramid on the
    last block. `output_norm` adds a LayerNorm to each map, as the published Swin models of this family have.
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
        body = _create(_Source(name, pretrained, weights), image_size, dict(options or {}))
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
        mean, std = _pixel_statistics(name)
        self.pixel_mean, self.pixel_std = mean, std

    def forward(self, images: Tensor) -> list[Tensor]:
        """Maps [B, C_i, H / s_i, W / s_i] of images [B, 3, H, W], normalised, H and W multiples of `size_divisor`."""
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
        roles = encoder_roles(timm.model_entrypoint(self.name.split(".")[0]).__module__, self)
        if self.is_plain:
            return {role: f"{name}.body.model.{pattern}" for role, pattern in roles.items()}
        # timm's feature lists flatten the first level of names: layers.0 becomes layers_0
        return {role: f"{name}.body.{flattened(pattern, self.body)}" for role, pattern in roles.items()}


@dataclass(frozen=True)
class _Source:
    """A timm model by its name, and the source of its weights."""

    name: str
    pretrained: bool
    weights: Path | None


def _create(source: _Source, image_size: int | None, options: dict[str, Any]) -> Any:
    name = source.name
    base_name = name.split(".")[0]
    if not timm.is_model(base_name):
        near = timm.list_models(f"*{base_name.split('_')[0]}*")[:5]
        raise ConfigError(f"`backbone` must be a timm model, but is {name!r}. Near it: {', '.join(near) or 'none'}.")
    if options.get("in_chans", 3) != 3:
        raise ConfigError(
            "`backbone_options.in_chans` must be 3, since images are read as RGB, but is "
            f"{options['in_chans']!r}. Leave it out."
        )
    family = timm.model_entrypoint(base_name).__module__
    if family in _DYNAMIC_SIZE:
        options = {"dynamic_img_size": True, **options}
    elif image_size is not None and "img_size" not in options and _has_fixed_size(name):
        return _create_at(source, image_size, options)
    return _created(source, options)


def _create_at(source: _Source, image_size: int, options: dict[str, Any]) -> Any:
    """A model of fixed input size, built for images of `image_size` pixels as they are padded."""
    side = padded_side(image_size, _LEAST_DIVISOR)
    body = _created(source, {"img_size": side, **options})
    # known only now: strides of more than 32, or of no power of two
    wanted = padded_side(image_size, _divisor(body))
    return body if wanted == side else _created(source, {"img_size": wanted, **options})


def _created(source: _Source, options: dict[str, Any]) -> Any:
    try:
        if source.weights is not None:
            return create_with_weights(source.name, source.weights, options)
        with _quiet_downloads():
            return timm.create_model(source.name, pretrained=source.pretrained, features_only=True, **options)
    except _BUILD_ERRORS as error:
        if source.pretrained and source.weights is None:
            _created(replace(source, pretrained=False), options)
            raise ConfigError(_without_weights(source.name, error)) from error
        raise ConfigError(
            f"timm cannot build `backbone` {source.name!r} as a feature backbone with options {options}: "
            f"{first_line(error)}. Try another `image_size` or backbone, or other `backbone_options`."
        ) from error


def _without_weights(name: str, error: Exception) -> str:
    what = f"The pretrained weights of `backbone` {name!r}"
    if "loading state_dict" in str(error):
        config = timm.get_pretrained_cfg(name, allow_unregistered=True)
        size = f" They were trained at {config.input_size[-1]} pixels." if config is not None else ""
        return (
            f"{what} do not fit at this `image_size`: {unfit_tensor(error)}.{size} "
            "Choose another `image_size` or backbone."
        )
    return (
        f"{what} could not be fetched: {first_line(error)}. Connect to the network, or name a local file of them by "
        "`backbone_weights=FILE`."
    )


@contextmanager
def _quiet_downloads() -> Iterator[None]:
    """Context in which a failed download is reported once, by its error, and not at each of its attempts."""
    logger = logging.getLogger("huggingface_hub")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def first_line(error: Exception) -> str:
    """Return the first line of another library's error message; the error's class name where it is empty."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def _divisor(body: Any) -> int:
    """Return the number of which the input's height and width must be multiples."""
    strides = list(body.feature_info.reduction())
    return pyramid_divisor(strides[-1]) if len(set(strides)) == 1 else max(_LEAST_DIVISOR, strides[-1])


def padded_side(side: int, divisor: int) -> int:
    """The least multiple of `divisor` that holds `side` pixels."""
    return -(-side // divisor) * divisor


def _has_fixed_size(name: str) -> bool:
    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    return config is not None and bool(config.fixed_input_size)


def _pixel_statistics(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The base's own pixel mean and deviation, in 0..255."""
    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    mean = config.mean if config is not None else timm.data.IMAGENET_DEFAULT_MEAN
    std = config.std if config is not None else timm.data.IMAGENET_DEFAULT_STD
    return tuple(round(255 * m, 3) for m in mean), tuple(round(255 * s, 3) for s in std)


def check_size(images: Tensor, divisor: int) -> None:
    """Raise where the input is not padded to the backbone's grid."""
    height, width = images.shape[-2:]
    if height % divisor or width % divisor:
        raise ConfigError(
            f"The input's height and width must be multiples of {divisor} for this backbone, but are {height}x{width}. "
            "Pad at the right and bottom, or choose another `image_size`."
        )
    if not torch.is_floating_point(images):
        raise ConfigError(f"The input must be a normalised float image, but has dtype {images.dtype}.")
