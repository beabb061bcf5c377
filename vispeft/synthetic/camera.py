"""Effects of a camera or microscope on a scene: light, blur, noise, colour cast, compression."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from vispeft.synthetic.textures import Image, gaussian_noise, smooth_field


def photograph(rng: np.random.Generator, image: Image) -> NDArray[np.uint8]:
    """Return the scene [H, W, 3] in 0..1 as an 8-bit image with random degradations."""
    height, width = image.shape[:2]
    if rng.random() < 0.5:
        image = image * (1 + rng.uniform(0.1, 0.7) * (smooth_field(rng, height, width)[:, :, None] - 0.5))
    if rng.random() < 0.5:
        image = np.asarray(
            cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 1.6) * min(height, width) / 192), np.float32
        )
    if rng.random() < 0.25:
        image = np.repeat((image @ np.array([0.3, 0.59, 0.11], np.float32))[:, :, None], 3, axis=2)
    elif rng.random() < 0.3:
        image = image * rng.uniform(0.75, 1.25, 3).astype(np.float32)
    if rng.random() < 0.3:
        image = (image - 0.5) * np.float32(rng.uniform(0.4, 1.5)) + np.float32(rng.uniform(0.3, 0.6))
    if rng.random() < 0.06:
        image = 1 - image
    if rng.random() < 0.6:
        noise = gaussian_noise(rng, height, width)
        noise = noise[:, :, :1] if rng.random() < 0.5 else noise
        image = image + np.float32(rng.exponential(0.03)) * noise
    picture = np.asarray(np.clip(image * 255, 0, 255), np.uint8)
    if rng.random() < 0.3:
        curve = 255 * (np.arange(256) / 255) ** np.exp(rng.uniform(-0.6, 0.6))
        picture = np.asarray(cv2.LUT(picture, curve.astype(np.uint8)), np.uint8)
    return compressed(picture, int(rng.integers(25, 90))) if rng.random() < 0.2 else picture


def compressed(picture: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    """Return the image after JPEG compression with a quality of 1..100."""
    _, data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)
