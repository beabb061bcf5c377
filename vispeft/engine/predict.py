"""Predictions for images in memory."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from vispeft.data import EvalTransform, Sample, collate
from vispeft.data.reading.channels import RGB, read_image
from vispeft.data.reading.images import Picture
from vispeft.data.transforms.augmentation import Example, TileTransform
from vispeft.data.transforms.tiles import Tiling
from vispeft.engine.loaders import image_size as image_size_of
from vispeft.engine.loaders import tiling_of
from vispeft.engine.saved_runs import LoadedRun
from vispeft.engine.tasks.instance import model_instances
from vispeft.engine.tasks.registry import TASKS
from vispeft.errors import ConfigError, DataError
from vispeft.models import DetectionLimits, SegmentationModel
from vispeft.models.modes import evaluating
from vispeft.models.tile_merging import merge_tiles
from vispeft.structures import ImageMeta, Instances, Predictions, Window
from vispeft.training.devices import Precision, build_fabric, parse_device
from vispeft.training.step import in_float32
from vispeft.training.validate import InstanceFunction

AnyImage: TypeAlias = str | os.PathLike[str] | Image.Image | NDArray[Any] | Tensor
# modes that Pillow converts to RGB without a loss
_PIL_MODES = ("RGB", "L", "P", "1")


@dataclass(frozen=True)
class Predictor:
    """A model with its device, precision and settings; called with one image, it returns the instances.

    find: makes instances of predictions, as the task asks
    image_size: longer side of the network input, in pixels
    tiling: division of images into tiles, which are then as large at the network; None for whole images
    """

    model: SegmentationModel
    fabric: Fabric
    find: InstanceFunction
    image_size: int
    limits: DetectionLimits
    tiling: Tiling | None = None

    @torch.no_grad()
    def __call__(self, picture: Picture) -> Instances:
        """Return the instances of one image, in its own pixels."""
        height, width = picture.pixels.shape[:2]
        if self.tiling is None:
            example = EvalTransform(self.image_size)(picture, (), height, width, np.random.default_rng(0))
            return self._instances(example, ImageMeta(0, "", height, width, *example.image.shape[1:]))
        transform, tiles = TileTransform(self.image_size, self.tiling), self.tiling.tiles(height, width)
        found = []
        for tile in tiles:
            example = transform(picture, (), tile)
            window = Window(tile.left, tile.top, height, width, len(tiles))
            input_height, input_width = example.image.shape[1:]
            sides = tile.bottom - tile.top, tile.right - tile.left
            meta = ImageMeta(0, "", *sides, input_height, input_width, window)
            found.append((meta, self._instances(example, meta)))
        return merge_tiles(found, self.limits.max_detections)

    def _instances(self, example: Example, meta: ImageMeta) -> Instances:
        """Return the instances of one image, or of one tile in its own pixels."""
        batch = collate(
            [Sample(example.image, example.labels, example.boxes_xyxy, example.masks, meta)],
            pixel_mean=self.model.pixel_mean,
            pixel_std=self.model.pixel_std,
            image_size=self.image_size,
            size_divisor=self.model.size_divisor,
        )
        with self.fabric.autocast():
            predictions: Predictions = self.model(batch.images.to(self.fabric.device))
        (found,) = self.find(in_float32(predictions), batch.metas, batch.padded_size)
        return found


def predict(
    model: SegmentationModel | LoadedRun,
    images: Sequence[AnyImage],
    *,
    threshold: float = 0.5,
    max_detections: int | None = None,
    image_size: int | None = None,
    tile: int | None = None,
    tile_overlap: float = 0.25,
) -> list[Instances]:
    """Return the instances of each image at its own size, best first.

    The model stays on its device and in its mode. A run from `load_run` predicts as `vispeft predict` does on that
    device: at the image size and in the precision of its configuration, and by the inference of its task; classes and
    segments of label maps are instances that do not overlap. A model alone predicts instances in float32.

    images: a list of files, PIL images, arrays [H, W, C] uint8, or tensors [C, H, W] uint8, RGB for three channels;
        arrays and tensors of other channels may also be float32 in 0..255
    threshold: lowest score of an instance
    max_detections: instances kept per image; the run's `eval.max_detections`, or 300 for a model alone, by default
    image_size: longer side of the network input in pixels; the run's by default, required for a model alone
    tile: side of the tiles into which images are cut, in their pixels; a tile has then `image_size` at the network. By
        default the run's `model.tile`, or whole images for a model alone
    tile_overlap: part of its side that a tile shares with the next one, if `tile` is given

    Raises ConfigError for a wrong setting, and DataError, with the image's number, for an image of another form.
    """
    if not 0 <= threshold <= 1:
        raise ConfigError(f"`threshold` must be in 0..1, but is {threshold}.")
    for name, value in (("max_detections", max_detections), ("image_size", image_size), ("tile", tile)):
        if value is not None and value < 1:
            raise ConfigError(f"`{name}` must be at least 1, but is {value}.")
    if isinstance(images, (str, os.PathLike, Image.Image, np.ndarray, Tensor)):
        raise DataError(f"`images` must be a list of images, but is one {type(images).__name__}. Write [image].")
    predictor = _predictor(model, threshold, max_detections, image_size)
    channels = predictor.model.num_channels
    pictures = [_picture_of(image, number, channels) for number, image in enumerate(images)]
    if tile is not None:
        predictor = replace(predictor, tiling=Tiling(tile, tile_overlap))
    with evaluating(predictor.model):
        return [predictor(picture) for picture in pictures]


def predictor_of_run(
    run: LoadedRun,
    device: str,
    *,
    threshold: float,
    max_detections: int | None = None,
    image_size: int | None = None,
    prefix: str = "",
) -> Predictor:
    """Return the predictor of a run, in the precision of its configuration; the model is not moved.

    prefix: of the device's name in errors
    """
    limits = DetectionLimits(max_detections=max_detections or run.config.eval.max_detections, score_threshold=threshold)
    fabric = build_fabric(device, _precision(run, device, prefix), prefix=prefix)
    find = TASKS[run.config.task].finder(run.model, run.config.eval, limits, run.is_thing)
    return Predictor(run.model, fabric, find, image_size or image_size_of(run.config), limits, tiling_of(run.config))


def _predictor(
    model: SegmentationModel | LoadedRun, threshold: float, max_detections: int | None, image_size: int | None
) -> Predictor:
    base = model.model if isinstance(model, LoadedRun) else model
    if not isinstance(base, SegmentationModel):
        raise ConfigError(
            "`model` must be a segmentation model of vispeft or a run from `vispeft.load_run`, but is "
            f"{type(base).__name__}."
        )
    # an exported model has no parameters and runs on the CPU
    device = str(next((parameter.device for parameter in base.parameters()), "cpu"))
    if isinstance(model, LoadedRun):
        return predictor_of_run(
            model, device, threshold=threshold, max_detections=max_detections, image_size=image_size
        )
    if image_size is None:
        raise ConfigError("`image_size` must be given for a model alone: the longer side that it was trained at.")
    limits = DetectionLimits(max_detections=max_detections or DetectionLimits.max_detections, score_threshold=threshold)
    find = partial(model_instances, base, limits)
    return Predictor(base, build_fabric(device, "fp32"), find, image_size, limits)


def _precision(run: LoadedRun, device: str, prefix: str) -> Precision:
    """Return the run's precision, or fp32 if the device lacks it, so that any device can predict."""
    kind, _ = parse_device(device, prefix=prefix)
    asked = run.config.train.precision
    if asked != "fp16" or kind == "cuda":
        return asked
    warnings.warn(
        f"The run was trained in fp16, which the device `{kind}` does not have: it predicts in fp32.", stacklevel=3
    )
    return "fp32"


def _picture_of(image: AnyImage, number: int, num_channels: int) -> Picture:
    """Return the pixels of an image. number: its place in the list, for errors"""
    match image:
        case str() | os.PathLike():
            return read_image(Path(image), num_channels)
        case Image.Image():
            if num_channels == 1 and image.mode in _PIL_MODES:
                return Picture(np.asarray(ImageOps.exif_transpose(image).convert("L"))[:, :, None])
            if num_channels != RGB:
                raise DataError(f"Image {number} must have {num_channels} channels: give a file, an array or a tensor.")
            if image.mode not in _PIL_MODES:
                raise DataError(
                    f"Image {number} must have one of the modes {', '.join(_PIL_MODES)}, but has {image.mode}. "
                    'Convert it, such as by image.convert("RGB"), or give its file.'
                )
            return Picture(np.asarray(ImageOps.exif_transpose(image).convert("RGB")))
        case Tensor():
            types = (torch.uint8,) if num_channels == RGB else (torch.uint8, torch.float32)
            if image.dtype not in types or image.ndim != 3 or image.shape[0] != num_channels:
                raise DataError(
                    f"Image {number} must be a tensor {_form('[C, H, W]', num_channels)}, but is "
                    f"{list(image.shape)} of {str(image.dtype).removeprefix('torch.')}."
                )
            return _checked(image.permute(1, 2, 0).contiguous().cpu().numpy(), number)
        case np.ndarray():
            kinds = (np.uint8,) if num_channels == RGB else (np.uint8, np.float32)
            if image.dtype not in kinds or image.ndim != 3 or image.shape[2] != num_channels:
                raise DataError(
                    f"Image {number} must be an array {_form('[H, W, C]', num_channels)}, but is "
                    f"{list(image.shape)} of {image.dtype}."
                )
            return _checked(np.ascontiguousarray(image), number)
    raise DataError(f"Image {number} must be a file, a PIL image, an array or a tensor, but is {type(image).__name__}.")


def _form(shape: str, num_channels: int) -> str:
    """Return the form that an image in memory must have, as text."""
    kind = "uint8, RGB" if num_channels == RGB else "uint8, or float32 in 0..255"
    return f"{shape.replace('C', str(num_channels))} of {kind}"


def _checked(pixels: NDArray[Any], number: int) -> Picture:
    if not pixels.size:
        raise DataError(f"Image {number} must have pixels, but is {pixels.shape[1]}x{pixels.shape[0]} pixels large.")
    return Picture(pixels)
