"""Canvas of a synthetic image: the painted pixels and the instance number of each pixel."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from vispeft.synthetic.contours import Contours
from vispeft.synthetic.textures import NATURAL, Image, blend, texture

Alpha = NDArray[np.uint8]


@dataclass(frozen=True)
class Material:
    """Fill of an instance.

    low, high: RGB [3] in 0..1 at the texture's dark and bright ends
    families: texture families; empty for a plain fill
    dome: brightness difference of the centre to the rim; negative for a bright rim
    slope: brightness change from one side to the other
    gloss: strength of a specular spot, 0..1
    bumps: brightness range of an embossed relief, such as wrinkles
    rim: RGB [3] of the outline, or None
    rim_width: width of the outline, in pixels
    opacity: opacity of the fill
    """

    low: Image
    high: Image
    families: tuple[str, ...] = NATURAL
    dome: float = 0.0
    slope: float = 0.0
    gloss: float = 0.0
    bumps: float = 0.0
    rim: Image | None = None
    rim_width: float = 1.0
    opacity: float = 1.0


@dataclass(frozen=True)
class Stencil:
    """Coverage of one shape: alpha [h, w] uint8 with its top left pixel at (top, left) of the image."""

    alpha: Alpha
    top: int
    left: int

    @property
    def window(self) -> tuple[slice, slice]:
        """Rows and columns of the image that the stencil covers."""
        h, w = self.alpha.shape
        return slice(self.top, self.top + h), slice(self.left, self.left + w)


def stencil(contours: Contours, height: int, width: int, margin: int = 1) -> Stencil | None:
    """Return the antialiased coverage of contours (pixels, x right, y down), or None outside the image."""
    low, high = contours[0].min(axis=0), contours[0].max(axis=0)
    left, top = max(int(low[0]) - margin, 0), max(int(low[1]) - margin, 0)
    right, bottom = min(int(high[0]) + 1 + margin, width), min(int(high[1]) + 1 + margin, height)
    if right - left < 2 or bottom - top < 2:
        return None
    scale = 4 if max(right - left, bottom - top) < 64 else 2
    fine = np.zeros(((bottom - top) * scale, (right - left) * scale), np.uint8)
    origin = np.array([left, top], np.float32)
    polygons = [np.rint(((c - origin) * scale - 0.5) * 16).astype(np.int32) for c in contours]
    cv2.fillPoly(fine, polygons, 255, cv2.LINE_8, 4)
    alpha = cv2.resize(fine, (right - left, bottom - top), interpolation=cv2.INTER_AREA)
    return Stencil(np.asarray(alpha, np.uint8), top, left)


class Canvas:
    """An image [H, W, 3] float32 in 0..1 with the instance number of each pixel (0 for the background)."""

    def __init__(self, image: Image) -> None:
        self.image = image
        self.ids = np.zeros(image.shape[:2], np.int16)
        self.labels: list[int] = []
        self.full_areas: list[int] = []

    @property
    def height(self) -> int:
        return int(self.image.shape[0])

    @property
    def width(self) -> int:
        return int(self.image.shape[1])

    @property
    def side(self) -> int:
        """The shorter side, in pixels."""
        return min(self.height, self.width)

    def stencil(self, contours: Contours, margin: int = 1) -> Stencil | None:
        """Return the coverage of contours in this image."""
        return stencil(contours, self.height, self.width, margin)

    def claim(self, shape: Stencil, label: int) -> None:
        """Assign the pixels that the stencil covers by more than half to a new instance."""
        inside = shape.alpha > 127
        self.labels.append(label)
        self.full_areas.append(int(np.count_nonzero(inside)))
        self.ids[shape.window][inside] = len(self.labels)

    def lay(self, shape: Stencil, fill: Image, opacity: float = 1.0) -> None:
        """Paint a fill ([3] or [h, w, 3]) through the stencil."""
        region = self.image[shape.window]
        region += shape.alpha[:, :, None] * np.float32(opacity / 255) * (fill - region)

    def shade(self, shape: Stencil, offset: tuple[int, int], sigma: float, strength: float) -> None:
        """Darken the image by a soft shadow of the stencil, shifted by offset (x, y) pixels."""
        pad = int(2 * sigma) + 1
        soft = cv2.copyMakeBorder(shape.alpha, pad, pad, pad, pad, cv2.BORDER_CONSTANT, value=0)
        soft = cv2.GaussianBlur(soft, (0, 0), sigma)
        top, left = shape.top - pad + offset[1], shape.left - pad + offset[0]
        cut_top, cut_left = max(-top, 0), max(-left, 0)
        top, left = max(top, 0), max(left, 0)
        soft = soft[cut_top : cut_top + self.height - top, cut_left : cut_left + self.width - left]
        if soft.size:
            h, w = soft.shape
            self.image[top : top + h, left : left + w] *= 1 - soft[:, :, None] * np.float32(strength / 255)

    def add(self, rng: np.random.Generator, contours: Contours, label: int | None, material: Material) -> None:
        """Paint a shape. With a label it becomes an instance; without one, its pixels keep their instance number."""
        shape = self.stencil(contours)
        if shape is None:
            return
        self.lay(shape, _fill(rng, shape, material), material.opacity)
        if material.rim is not None:
            self.outline(contours, material.rim, material.rim_width)
        if label is not None:
            self.claim(shape, label)

    def write(self, text: str, place: tuple[float, float], size: float, rgb: Image) -> None:
        """Draw text with its baseline from `place` (x, y), in pixels. A size of 1 is about 30 pixels high."""
        height, width = min(int(60 * size) + 4, self.height), min(int(26 * size * len(text)) + 4, self.width)
        alpha = np.zeros((height, width), np.uint8)
        cv2.putText(alpha, text, (1, int(0.7 * height)), cv2.FONT_HERSHEY_SIMPLEX, size, 255, 1, cv2.LINE_AA)
        left = int(np.clip(place[0], 0, self.width - width))
        top = int(np.clip(place[1] - 0.7 * height, 0, self.height - height))
        self.lay(Stencil(alpha, top, left), rgb)

    def outline(self, contours: Contours, rgb: Image, line_width: float) -> None:
        """Draw the contours as lines."""
        lines = [np.rint((c - 0.5) * 16).astype(np.int32) for c in contours]
        tint = [float(v) for v in rgb]
        cv2.polylines(self.image, lines, True, tint, max(round(line_width), 1), cv2.LINE_AA, 4)


def _fill(rng: np.random.Generator, shape: Stencil, material: Material) -> Image:
    """Return the colours [h, w, 3] of a material inside a stencil."""
    h, w = shape.alpha.shape
    if material.families:
        fill = blend(texture(rng, h, w, material.families), material.low, material.high)
    else:
        fill = np.broadcast_to(material.low, (h, w, 3)).copy()
    if material.bumps:
        fill *= 1 + np.float32(material.bumps) * (texture(rng, h, w, ("relief",)) - np.float32(0.5))[:, :, None]
    if material.dome or material.gloss or material.slope:
        y = np.linspace(-1, 1, h, dtype=np.float32)[:, None]
        x = np.linspace(-1, 1, w, dtype=np.float32)[None]
        light = rng.uniform(0, 2 * np.pi)
        lx, ly = np.float32(np.cos(light)), np.float32(np.sin(light))
        gain = 1 + np.float32(material.slope) * (x * lx + y * ly)
        if material.dome:
            gain += np.float32(material.dome) * (0.6 - x * x - y * y)
        fill *= gain[:, :, None]
        if material.gloss:
            spot = np.exp(-8 * ((x - 0.4 * lx) ** 2 + (y - 0.4 * ly) ** 2))
            fill += (np.float32(material.gloss) * spot)[:, :, None]
    return fill
