"""Cache keys of kept features: a feature is reused only if everything that it was computed from is unchanged."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from vispeft.coco.sets import CocoSet
from vispeft.config import Config
from vispeft.data import Draw
from vispeft.engine.build import model_arguments
from vispeft.models import SegmentationModel
from vispeft.models.split import FrozenPrefix
from vispeft.peft.fingerprint import fingerprint

_FORMAT = 1
# packages that compute samples and features
_PACKAGES = ("vispeft", "torch", "torchvision", "timm", "albumentations", "opencv-python-headless", "numpy", "pillow")


def prefix_fingerprint(config: Config, model: SegmentationModel, prefix: FrozenPrefix, *, arithmetic: str) -> str:
    """Return a digest of the frozen prefix: its weights, model arguments, split point and arithmetic.

    arithmetic: device and precision
    """
    weights = {name: tensor for name, tensor in model.state_dict().items() if prefix.point.is_in_prefix(name)}
    return _digest(
        {
            "format": _FORMAT,
            "packages": {name: _version(name) for name in _PACKAGES},
            "arguments": model_arguments(config.model),
            "weights": fingerprint(weights, ()),
            "kept": prefix.point.kept,
            "padded_size": prefix.padded_size,
            "pixels": (model.pixel_mean, model.pixel_std),
            "arithmetic": arithmetic,
        }
    )


class EntryKeys:
    """Keys of the entries of a data set, made of image file, annotations, settings and variant.

    settings: everything that samples depend on, apart from their image and their annotations
    """

    def __init__(self, coco_set: CocoSet, settings: Mapping[str, Any]) -> None:
        self._coco_set = coco_set
        self._settings = _digest(settings)
        self._image_digests: dict[int, str] = {}
        self._keys: dict[Draw, str] = {}

    def __call__(self, draw: Draw) -> str:
        """Return the key of a draw."""
        if draw not in self._keys:
            # the index counts: random numbers of the augmentation are seeded by index and variant
            self._keys[draw] = _digest([self._settings, self._image_digest(draw.index), draw.index, draw.number])
        return self._keys[draw]

    def _image_digest(self, index: int) -> str:
        if index not in self._image_digests:
            self._image_digests[index] = _image_digest(self._coco_set, index)
        return self._image_digests[index]


def set_digest(coco_set: CocoSet) -> str:
    """Return a digest of all images and annotations of a set."""
    return _digest([_image_digest(coco_set, index) for index in range(len(coco_set))])


def _image_digest(coco_set: CocoSet, index: int) -> str:
    image, annotations = coco_set.images[index], coco_set.annotations[index]
    return _digest(
        [
            *(os.path.abspath(str(image.path)), _file_state(image.path), image.height, image.width),
            hashlib.sha256(pickle.dumps(annotations, 4)).hexdigest(),
        ]
    )


def _file_state(path: Any) -> list[int]:
    """Return size and modification time of a file; nothing for a missing file, for which loading raises the error."""
    try:
        state = path.stat()
    except (OSError, AttributeError):
        return []
    return [state.st_size, state.st_mtime_ns]


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
