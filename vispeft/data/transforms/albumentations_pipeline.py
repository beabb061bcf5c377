"""Pipelines of albumentations transforms, checked when they are built and when they are applied."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vispeft.errors import ConfigError
from vispeft.io.names import did_you_mean


def build_pipeline(transforms: Sequence[tuple[str, Mapping[str, Any]]]) -> Any:
    """Build an albumentations pipeline, or return None for no transforms.

    Return `Any`, because the library is imported lazily.
    """
    if not transforms:
        return None
    # read on import: albumentations would look for a newer version over the network
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    import albumentations

    known = {
        name: kind
        for name, kind in vars(albumentations).items()
        if isinstance(kind, type) and issubclass(kind, albumentations.BasicTransform)
    }
    built = []
    for name, options in transforms:
        if name not in known:
            raise ConfigError(f"albumentations has no transform `{name}`.{did_you_mean(name, known)}")
        try:
            # albumentations only warns of unknown options and ignores them
            with warnings.catch_warnings(action="error"):
                built.append(known[name](**options))
        except (TypeError, ValueError, UserWarning) as error:
            raise ConfigError(f"albumentations' `{name}` does not take {dict(options)}: {error}") from error
    return albumentations.Compose(built)


def colour_jitter(strength: float) -> list[tuple[str, Mapping[str, Any]]]:
    if strength == 0:
        return []
    factor, hue = (1 - strength, 1 + strength), strength / 8
    options = {"brightness": factor, "contrast": factor, "saturation": factor, "hue": (-hue, hue), "p": 0.8}
    return [("ColorJitter", options)]


def apply_with_masks(
    pipeline: Any, image: NDArray[Any], masks: NDArray[np.uint8]
) -> tuple[NDArray[Any], NDArray[np.uint8]]:
    try:
        done = pipeline(image=image, masks=masks) if len(masks) else pipeline(image=image)
    # albumentations raises exceptions of any type where a transform does not suit an image
    except Exception as error:
        height, width = image.shape[:2]
        raise ConfigError(
            f"`extra` transforms must take any image, but fail on one of {width}x{height}: {error}."
        ) from (error)
    given, image = image, done["image"]
    if image.dtype != given.dtype or image.ndim != 3 or image.shape[2] != given.shape[2]:
        kind = "RGB images of 8 bits" if given.shape[2] == 3 else f"images of {given.shape[2]} channels, as they come"
        raise ConfigError(f"`extra` transforms must give {kind}; normalisation is done later.")
    if len(masks) == 0:
        return image, np.zeros((0, *image.shape[:2]), np.uint8)
    return image, np.array(np.asarray(done["masks"]) != 0, order="C").view(np.uint8)
