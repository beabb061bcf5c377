"""Photometric augmentation of images that are not RGB: brightness and contrast, the same for all channels."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

# probability of a change, as of the colour jitter of RGB images
_PROBABILITY = 0.8


class BrightnessContrast:
    """Factors on brightness, and on the distance from each channel's mean, drawn from 1 - strength to 1 + strength."""

    def __init__(self, strength: float, rng: np.random.Generator) -> None:
        self.brightness, self.contrast = rng.uniform(1 - strength, 1 + strength, 2).astype(np.float32)
        self.is_used = bool(rng.random() < _PROBABILITY)

    def __call__(self, image: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Return the image in the form of an albumentations pipeline. image: [h, w, C]"""
        if not self.is_used:
            return {"image": image}
        values = image.astype(np.float32) * self.brightness
        mean = values.mean((0, 1), keepdims=True)
        values = (values - mean) * self.contrast + mean
        return {"image": values.clip(0, 255).round().astype(np.uint8) if image.dtype == np.uint8 else values}
