"""Models of timm by name: built with the weights of a source, their pixel statistics and input sizes."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor

from vispeft.errors import ConfigError
from vispeft.models.backbones import hybrid
from vispeft.models.backbones.weights import create_with_weights, unfit_tensor

MOST_CHANNELS = 12
_BUILD_ERRORS = (
    *(AssertionError, AttributeError, IndexError, KeyError, OSError),
    *(RuntimeError, TypeError, ValueError, ZeroDivisionError),
)


@dataclass(frozen=True)
class Source:
    """A timm model by its name, and the source of its weights."""

    name: str
    pretrained: bool
    weights: Path | None


def timm_module_of(name: str, options: Mapping[str, Any]) -> str:
    """Return the timm module that defines a model. ConfigError for an unknown model."""
    base_name = name.split(".")[0]
    if not timm.is_model(base_name):
        near = timm.list_models(f"*{base_name.split('_')[0]}*")[:5]
        raise ConfigError(f"`backbone` must be a timm model, but is {name!r}. Near it: {', '.join(near) or 'none'}.")
    family: str = timm.model_entrypoint(base_name).__module__
    return family


def create(source: Source, options: Mapping[str, Any], *, form: Mapping[str, Any]) -> Any:
    """Return a timm model.

    options: of the user, for `timm.create_model`
    form: arguments of `timm.create_model` that say what the model gives, such as `features_only`

    Raises ConfigError where timm cannot build it, or has no weights for it that fit.
    """
    has_weights = source.pretrained or source.weights is not None
    if has_weights and timm_module_of(source.name, options) == hybrid.__name__:
        raise ConfigError(hybrid.NO_WEIGHTS)
    try:
        if source.weights is not None:
            return create_with_weights(source.name, source.weights, options, form=form)
        with _quiet_downloads():
            return timm.create_model(source.name, pretrained=source.pretrained, **form, **options)
    except _BUILD_ERRORS as error:
        if source.pretrained and source.weights is None:
            create(replace(source, pretrained=False), options, form=form)
            raise ConfigError(_without_weights(source.name, error)) from error
        raise ConfigError(
            f"timm cannot build `backbone` {source.name!r} as a feature backbone with options {dict(options)}: "
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


def padded_side(side: int, divisor: int) -> int:
    """Return the least multiple of `divisor` that holds `side` pixels."""
    return -(-side // divisor) * divisor


@dataclass(frozen=True)
class Channels:
    """Channels of the images that a backbone takes, with their mean and standard deviation in 0..255."""

    pixel_mean: tuple[float, ...]
    pixel_std: tuple[float, ...]


def channels_of(name: str, options: Mapping[str, Any]) -> tuple[Channels, dict[str, Any]]:
    """Return the channels of a backbone, and the options without what only they need.

    options: `in_chans` is timm's and stays; `pixel_mean` and `pixel_std` are one number for each channel. By default
        they are those of the pretraining on RGB images: their mean for one channel, and for more than three the same
        in turn, as timm repeats the weights of the first map.

    Raises ConfigError for channels that are not 1 to 12, or statistics of another number of channels.
    """
    rest = {key: value for key, value in options.items() if key not in ("pixel_mean", "pixel_std")}
    in_chans = options.get("in_chans", 3)
    if isinstance(in_chans, bool) or not isinstance(in_chans, int) or not 1 <= in_chans <= MOST_CHANNELS:
        raise ConfigError(f"`backbone_options.in_chans` must be in 1..{MOST_CHANNELS}, but is {in_chans!r}.")
    given = [options.get(key) for key in ("pixel_mean", "pixel_std")]
    if (given[0] is None) != (given[1] is None):
        raise ConfigError("`pixel_mean` and `pixel_std` belong together: give both or none.")
    if given[0] is None or given[1] is None:
        return Channels(*(_for_channels(values, in_chans) for values in pixel_statistics(name))), rest
    for key, values in zip(("pixel_mean", "pixel_std"), given, strict=True):
        if values is None or len(values) != in_chans:
            raise ConfigError(
                f"`{key}` must have one number for each of the {in_chans} channels (`in_chans`), but is {values!r}."
            )
    return Channels(tuple(map(float, given[0])), tuple(map(float, given[1]))), rest


def _for_channels(values: Sequence[float], in_chans: int) -> tuple[float, ...]:
    """Return RGB statistics for another number of channels."""
    if in_chans == 1:
        return (round(sum(values) / len(values), 3),)
    return tuple(values[channel % len(values)] for channel in range(in_chans))


def pixel_statistics(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the pixel mean and deviation of a model's pretraining on RGB images, in 0..255."""
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
