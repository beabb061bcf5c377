"""Copy-paste scenes of `pretrain_base.py`: cut-outs with alpha, and objects of photographs, on photographs."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from vispeft.coco.sets import CocoSet
from vispeft.data import Draw, InstanceDataset, TrainTransform
from vispeft.synthetic import Scene, render_scene
from vispeft.synthetic.camera import photograph

_MIN_PIXELS = 12
_MIN_VISIBLE = 0.15
_MIN_CUT = 20


class CutOuts:
    """Objects to paste, and backgrounds to paste them on.

    rendered: folder with images of one object each, with alpha
    backgrounds: folder with photographs without labels
    photographs: sets whose objects are pasted too
    """

    def __init__(self, rendered: Path, backgrounds: Path, photographs: list[InstanceDataset]) -> None:
        self.rendered = sorted(p for p in rendered.rglob("*") if p.suffix in (".webp", ".png"))
        self.backgrounds = [_read(path)[:, :, :3] for path in sorted(backgrounds.iterdir()) if path.suffix == ".jpg"]
        self.photographs = photographs

    def scene(self, rng: np.random.Generator, size: int) -> Scene:
        """Return a scene of one to thirty objects, all with label 0, at least one of them visible."""
        while True:
            canvas = self._background(rng, size)
            ids = np.zeros((size, size), np.int16)
            areas: list[int] = []
            typical = np.exp(rng.uniform(np.log(size / 18), np.log(size / 2)))
            most = int(np.clip((size / typical) ** 2 * 0.7, 2, 30))
            few = [self._object(rng) for _ in range(int(rng.integers(1, 7)))]
            for _ in range(int(rng.integers(1, most + 1))):
                side = typical * np.exp(rng.normal(0, 0.35))
                placed = _transformed(rng, few[int(rng.integers(len(few)))], side)
                areas.append(_paste(rng, canvas, ids, placed, len(areas) + 1))
            counts = np.bincount(ids.ravel(), minlength=len(areas) + 1)
            kept = [k for k, a in enumerate(areas, 1) if counts[k] >= max(_MIN_PIXELS, _MIN_VISIBLE * a)]
            if kept:
                image = photograph(rng, np.asarray(canvas / 255, np.float32))
                masks = ids[None] == np.array(kept, np.int16)[:, None, None]
                return Scene(image, masks, np.zeros(len(kept), np.int64))

    def _background(self, rng: np.random.Generator, size: int) -> NDArray[np.float32]:
        if rng.random() < 0.3:
            # a drawn scene without its labels is a hard background, where nothing but the pasted objects is one
            image = cv2.GaussianBlur(render_scene(rng, size).image, (0, 0), float(rng.uniform(2, 8)))
        else:
            whole = self.backgrounds[int(rng.integers(len(self.backgrounds)))]
            height, width = whole.shape[:2]
            side = int(min(height, width) * rng.uniform(0.2, 1))
            top, left = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))
            crop = whole[top : top + side, left : left + side]
            image = cv2.resize(crop, (size, size), interpolation=cv2.INTER_AREA)
        return image[:, :: 1 if rng.random() < 0.5 else -1].astype(np.float32)

    def _object(self, rng: np.random.Generator) -> NDArray[np.uint8]:
        """Return one object, RGBA, cut to its alpha."""
        while True:
            if not self.photographs or rng.random() < 0.6:
                image = _read(self.rendered[int(rng.integers(len(self.rendered)))])
            else:
                image = _cut(rng, self.photographs[int(rng.integers(len(self.photographs)))])
            rows, columns = np.nonzero(image[:, :, 3] > 127)
            if len(rows) >= _MIN_CUT**2 / 2:
                return image[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]


def _cut(rng: np.random.Generator, photographs: InstanceDataset) -> NDArray[np.uint8]:
    """Return one of the larger objects of a photograph, with its mask as alpha."""
    sample = photographs[Draw(int(rng.integers(len(photographs))), int(rng.integers(2**31)))]
    image = sample.image.permute(1, 2, 0).numpy()
    if not len(sample.masks):
        return np.zeros((1, 1, 4), np.uint8)
    mask = sample.masks[int(rng.integers(len(sample.masks)))].numpy()
    return np.dstack((image, mask.astype(np.uint8) * 255))


def _transformed(rng: np.random.Generator, image: NDArray[np.uint8], side: float) -> NDArray[np.float32]:
    """Return an object turned, mirrored, recoloured, and scaled to about `side` pixels."""
    height, width = image.shape[:2]
    scale = side / max(height, width)
    angle = rng.normal(0, 25) if rng.random() < 0.7 else rng.uniform(0, 360)
    reach = int(np.ceil(np.hypot(height, width) * scale)) + 2
    matrix = np.asarray(cv2.getRotationMatrix2D((width / 2, height / 2), angle, scale), np.float64)
    matrix[:, 2] += reach / 2 - np.array([width / 2, height / 2])
    # shrinking by more than two needs a mean over the pixels, which warping does not take
    source = image
    if scale < 0.5:
        shrunk = max(int(width * scale * 2), 1), max(int(height * scale * 2), 1)
        source = np.asarray(cv2.resize(image, shrunk, interpolation=cv2.INTER_AREA), np.uint8)
        matrix[:, :2] @= np.diag([width / shrunk[0], height / shrunk[1]])
    warped = cv2.warpAffine(source, matrix, (reach, reach), flags=cv2.INTER_LINEAR).astype(np.float32)
    if rng.random() < 0.5:
        warped = warped[:, ::-1].copy()
    warped[:, :, :3] = warped[:, :, :3] * rng.uniform(0.6, 1.2, 3) + rng.normal(0, 12)
    return warped


def _paste(
    rng: np.random.Generator,
    canvas: NDArray[np.float32],
    ids: NDArray[np.int16],
    image: NDArray[np.float32],
    number: int,
) -> int:
    """Paste an object at a random place, in place; return its area in pixels, with what lies outside."""
    size = len(canvas)
    reach = len(image)
    top, left = (int(v) for v in rng.integers(-reach // 3, size - reach * 2 // 3 + 1, 2)) if size > reach else (0, 0)
    rows = slice(max(top, 0), min(top + reach, size))
    columns = slice(max(left, 0), min(left + reach, size))
    part = image[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
    alpha = part[:, :, 3:] / 255
    canvas[rows, columns] = canvas[rows, columns] * (1 - alpha) + np.clip(part[:, :, :3], 0, 255) * alpha
    ids[rows, columns][part[:, :, 3] > 127] = number
    return int((image[:, :, 3] > 127).sum())


def photographs_for_cutting(sets: list[CocoSet]) -> list[InstanceDataset]:
    """Return samples of the sets at their own size, so that objects keep their resolution."""
    return [InstanceDataset(each, TrainTransform(352, scale=(1, 1), colour=0, min_pixels=600)) for each in sets]


def _read(path: Path) -> NDArray[np.uint8]:
    """Return an image, RGBA; opaque where the file has no alpha."""
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if image is None:
        raise SystemExit(f"{path} cannot be read as an image.")
    code = cv2.COLOR_BGRA2RGBA if image.ndim == 3 and image.shape[2] == 4 else cv2.COLOR_BGR2RGBA
    return np.asarray(cv2.cvtColor(image, code), np.uint8)
