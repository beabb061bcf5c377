"""Grey textures and colours for synthetic scenes. Textures are crops of tiles that are made once per process."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.float32]

TILE = 256


def _normalised(tile: Image) -> Image:
    """Return the tile scaled from its 1st and 99th percentile to 0..1."""
    low, high = np.percentile(tile, [1, 99])
    return np.asarray(np.clip((tile - low) / max(high - low, 1e-6), 0, 1), np.float32)


def _spectral(rng: np.random.Generator, exponent: float, stretch: float = 1.0) -> Image:
    """Return periodic noise with amplitude 1 / frequency ** `exponent`. stretch: elongation along x"""
    fy = np.fft.fftfreq(TILE)[:, None]
    fx = np.fft.rfftfreq(TILE)[None] * stretch
    frequency = np.sqrt(fx**2 + fy**2)
    frequency[0, 0] = 1.0
    spectrum = np.fft.rfft2(rng.normal(size=(TILE, TILE))) / frequency**exponent
    spectrum[0, 0] = 0
    return _normalised(np.fft.irfft2(spectrum, s=(TILE, TILE)).astype(np.float32))


def _band(rng: np.random.Generator, wavelength: float) -> Image:
    """Return band-limited noise: spots and winding lines about `wavelength` pixels apart."""
    fy, fx = np.fft.fftfreq(TILE)[:, None], np.fft.rfftfreq(TILE)[None]
    frequency = np.sqrt(fx**2 + fy**2)
    window = np.exp(-(((frequency * wavelength - 1) / 0.35) ** 2))
    spectrum = np.fft.rfft2(rng.normal(size=(TILE, TILE))) * window
    return _normalised(np.fft.irfft2(spectrum, s=(TILE, TILE)).astype(np.float32))


def _stripes(rng: np.random.Generator, wavelength: float) -> Image:
    y, x = np.mgrid[:TILE, :TILE].astype(np.float32)
    angle = rng.uniform(0, np.pi)
    bend = 6 * _spectral(rng, 2.0) * rng.uniform(0, 1)
    phase = (x * np.cos(angle) + y * np.sin(angle)) / wavelength + bend
    wave = 0.5 + 0.5 * np.sin(2 * np.pi * phase)
    return np.asarray(np.clip((wave - 0.5) * rng.uniform(1, 5) + 0.5, 0, 1), np.float32)


def _checks(rng: np.random.Generator, wavelength: float) -> Image:
    y, x = np.mgrid[:TILE, :TILE].astype(np.float32)
    angle = rng.choice([0.0, rng.uniform(0, np.pi)])
    u = (x * np.cos(angle) + y * np.sin(angle)) / wavelength
    v = (y * np.cos(angle) - x * np.sin(angle)) / wavelength
    return np.asarray((np.floor(u) + np.floor(v)) % 2, np.float32)


def _bricks(rng: np.random.Generator, wavelength: float) -> Image:
    y, x = np.mgrid[:TILE, :TILE].astype(np.float32)
    row = np.floor(y / wavelength)
    column = np.floor(x / (2.2 * wavelength) + 0.5 * (row % 2))
    joint = (y % wavelength < 1.5) | ((x + 1.1 * wavelength * (row % 2)) % (2.2 * wavelength) < 1.5)
    shade = 0.5 + 0.5 * rng.random((64, 64))[row.astype(int) % 64, column.astype(int) % 64]
    return np.where(joint, 0.0, shade).astype(np.float32)


def _dots(rng: np.random.Generator, wavelength: float) -> Image:
    tile = np.zeros((TILE, TILE), np.uint8)
    for x, y in rng.uniform(0, TILE, (int(TILE**2 / wavelength**2 / 2), 2)):
        centre = (int(x * 16), int(y * 16))
        cv2.circle(tile, centre, int(16 * wavelength * rng.uniform(0.15, 0.45)), 255, -1, cv2.LINE_AA, 4)
    return np.asarray(tile / 255, np.float32)


def _cells(rng: np.random.Generator, wavelength: float) -> Image:
    """Return the distance to the nearest of random points, which looks like pebbles or cell walls."""
    seeds = np.full((TILE, TILE), 255, np.uint8)
    points = rng.integers(0, TILE, (int(TILE**2 / wavelength**2) + 2, 2))
    seeds[points[:, 0], points[:, 1]] = 0
    return _normalised(np.asarray(cv2.distanceTransform(seeds, cv2.DIST_L2, 5), np.float32))


def _relief(rng: np.random.Generator, exponent: float) -> Image:
    """Return a rough surface lit from one side."""
    surface = _spectral(rng, exponent)
    return _normalised(np.asarray(np.roll(surface, (1, 2), (0, 1)) - surface, np.float32))


@lru_cache(maxsize=1)
def _bank() -> dict[str, tuple[Image, ...]]:
    """Return grey tiles [TILE, TILE] in 0..1 by family, the same in every process."""
    rng = np.random.default_rng(20240623)
    return {
        "cloud": tuple(_spectral(rng, e) for e in (1.2, 1.5, 1.8, 2.2, 2.6)),
        "grain": tuple(_spectral(rng, e) for e in (0.3, 0.6, 0.8, 1.0)),
        "fibre": tuple(_spectral(rng, e, s) for e, s in ((1.2, 6.0), (1.4, 0.15), (1.0, 12.0), (1.6, 0.1))),
        "spots": tuple(_band(rng, w) for w in (4, 6, 9, 14, 22, 34)),
        "stripes": tuple(_stripes(rng, w) for w in (5, 7, 10, 14, 20, 30)),
        "checks": tuple(_checks(rng, w) for w in (5, 8, 13, 21)),
        "bricks": tuple(_bricks(rng, w) for w in (6, 9, 14)),
        "dots": tuple(_dots(rng, w) for w in (6, 9, 14, 22)),
        "relief": tuple(_relief(rng, e) for e in (1.6, 2.0, 2.4)),
        "cells": tuple(_cells(rng, w) for w in (8, 14, 24)),
    }


@lru_cache(maxsize=1)
def _gaussian_tile() -> Image:
    """Return unit normal noise [2 TILE, 2 TILE, 3]."""
    return np.random.default_rng(7).normal(size=(2 * TILE, 2 * TILE, 3)).astype(np.float32)


NATURAL = ("cloud", "cloud", "grain", "fibre", "spots", "cells", "relief")
REGULAR = ("stripes", "checks", "bricks", "dots")


def texture(rng: np.random.Generator, height: int, width: int, families: tuple[str, ...] = NATURAL) -> Image:
    """Return a grey texture [height, width] in 0..1 of a random family, with random position, scale and orientation."""
    tiles = _bank()[families[rng.integers(len(families))]]
    tile = tiles[rng.integers(len(tiles))]
    flip = int(rng.integers(8))
    tile = tile.T if flip & 1 else tile
    tile = tile[::-1] if flip & 2 else tile
    tile = tile[:, ::-1] if flip & 4 else tile
    zoom = np.exp(rng.uniform(-0.7, 0.6))
    cut_h, cut_w = (int(np.clip(n * zoom, 2, TILE)) for n in (height, width))
    y, x = rng.integers(TILE - cut_h + 1), rng.integers(TILE - cut_w + 1)
    return np.asarray(cv2.resize(tile[y : y + cut_h, x : x + cut_w], (width, height)), np.float32)


def smooth_field(rng: np.random.Generator, height: int, width: int) -> Image:
    """Return a slowly varying field [height, width] in 0..1, such as uneven light."""
    return np.asarray(cv2.resize(rng.random((4, 4), np.float32), (width, height), interpolation=cv2.INTER_CUBIC))


def gaussian_noise(rng: np.random.Generator, height: int, width: int) -> Image:
    """Return unit normal noise [height, width, 3], cropped from a tile, which is repeated for larger images."""
    tile = _gaussian_tile()
    size = len(tile)
    if height > size or width > size:
        tile = np.tile(tile, (-(-height // size), -(-width // size), 1))
    y, x = rng.integers(tile.shape[0] - height + 1), rng.integers(tile.shape[1] - width + 1)
    noise = tile[y : y + height, x : x + width]
    return noise[:, :, rng.permutation(3)] if rng.random() < 0.5 else noise


def colour(
    rng: np.random.Generator, saturation: tuple[float, float] = (0, 1), value: tuple[float, float] = (0.1, 1)
) -> Image:
    """Return a random RGB colour [3] in 0..1 with HSV saturation and value in the given ranges."""
    hue, s, v = rng.uniform(0, 6), rng.uniform(*saturation), rng.uniform(*value)
    ramp = np.abs((hue + np.array([0, 4, 2])) % 6 - 3) - 1
    return np.asarray(v * (1 - s + s * np.clip(ramp, 0, 1)), np.float32)


def near(rng: np.random.Generator, base: Image, spread: float) -> Image:
    """Return a colour [3] near `base`, with brightness and hue changed by about `spread`."""
    return np.asarray(np.clip(base + rng.normal(0, spread) + rng.normal(0, spread / 2, 3), 0, 1), np.float32)


def blend(t: Image, low: Image, high: Image) -> Image:
    """Map grey [H, W] to colour [H, W, 3]: `low` where t is 0, `high` where t is 1."""
    return np.asarray(low + t[:, :, None] * (high - low), np.float32)
