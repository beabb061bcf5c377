"""Overlays of masks, contours and labels over an image."""

from __future__ import annotations

import colorsys
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from pycocotools import mask as mask_utils

from vispeft.coco.rle import decode_columns, run_lengths
from vispeft.errors import VispeftError
from vispeft.structures import Instances
from vispeft.visualization.colours import spread_hue

Colour = tuple[int, int, int]

_FILL_OPACITY = 0.35
# share of a picture that labels may cover
_LABEL_SHARE = 0.1
# images with a longer side below this are enlarged, since labels would hide them
_MIN_SIDE = 512


def draw_instances(
    image: NDArray[np.uint8],
    instances: Instances,
    names: Sequence[str],
    *,
    threshold: float = 0.5,
    show_scores: bool = True,
) -> Image.Image:
    """Draw every instance with a score of at least `threshold` over an image; small images are enlarged.

    Instances without masks are drawn as the outlines of their boxes.

    The factor of enlargement is an integer. Classes differ in hue, instances of one class in shade; with one class
    only, instances differ in hue and have no class name. Labels that would cover each other, or too much of the
    picture, are shortened or left out, lowest score first.

    image: [H, W, 3] RGB
    names: one per contiguous class index
    """
    height, width = image.shape[:2]
    factor = -(-_MIN_SIDE // max(height, width))
    picture = Image.fromarray(image).resize((width * factor, height * factor), Image.Resampling.BICUBIC)
    kept = [idx for idx, score in enumerate(instances.scores.tolist()) if score >= threshold]
    has_masks = bool(instances.rles)
    regions = _regions(instances, kept, (height, width), factor)
    labels = instances.labels.tolist()
    colours = _colours([labels[idx] for idx in kept], len(names))

    thickness = max(1, round(min(picture.size) / 400))
    from_large_to_small = sorted(range(len(kept)), key=lambda idx: -int(regions[idx].mask.sum()))
    for idx in from_large_to_small if has_masks else ():
        _paint(picture, regions[idx], regions[idx].mask, colours[idx], _FILL_OPACITY)
    for idx in from_large_to_small:
        _paint(picture, regions[idx], _contour(regions[idx].mask, thickness), colours[idx], 1.0)

    texts = []
    for idx in kept:
        score = f"{float(instances.scores[idx]):.2f}" if show_scores else ""
        # a name of several lines, as a list of names read without stripping has them, is written on one
        name = " ".join(names[labels[idx]].split()) if len(names) > 1 else ""
        texts.append((f"{name} {score}".strip(), score))
    _write_labels(picture, regions, texts, colours)
    return picture


@dataclass(frozen=True)
class _Region:
    """The part of a picture that one mask touches.

    top, left: its first row and column
    mask: [h, w] bool
    """

    top: int
    left: int
    mask: NDArray[np.bool_]


def _regions(instances: Instances, kept: Sequence[int], size: tuple[int, int], factor: int) -> list[_Region]:
    """Return the regions of the masks of some instances, enlarged by `factor`, or those of their boxes without masks.

    size: height and width of the image
    """
    if instances.rles:
        return [_region(instances.rles[idx], size, factor) for idx in kept]
    boxes = instances.boxes_xyxy.tolist()
    return [_rectangle(boxes[idx], size, factor) for idx in kept]


def _region(rle: dict[str, Any], size: tuple[int, int], factor: int) -> _Region:
    """Return the region of one mask, enlarged by `factor`. size: height and width of the image."""
    if list(rle["size"]) != list(size):
        raise VispeftError(
            f"`instances` must be of an image of {size[0]}x{size[1]} (height x width), but a mask is of"
            f" {rle['size'][0]}x{rle['size'][1]}. Draw them on the image that they were predicted for."
        )
    left, top, width, height = (int(value) for value in mask_utils.toBbox(rle))
    columns = decode_columns(run_lengths(rle["counts"]), size[0], left, left + width)
    mask = columns[top : top + height].astype(bool)
    return _Region(top * factor, left * factor, mask.repeat(factor, axis=0).repeat(factor, axis=1))


def _rectangle(box_xyxy: Sequence[float], size: tuple[int, int], factor: int) -> _Region:
    """Return the region of one box, enlarged by `factor`. size: height and width of the image."""
    height, width = size
    left, top = min(math.floor(box_xyxy[0]), width - 1), min(math.floor(box_xyxy[1]), height - 1)
    right, bottom = min(math.ceil(box_xyxy[2]), width), min(math.ceil(box_xyxy[3]), height)
    shape = max(bottom - top, 1) * factor, max(right - left, 1) * factor
    return _Region(top * factor, left * factor, np.ones(shape, dtype=bool))


def _colours(labels: Sequence[int], num_classes: int) -> list[Colour]:
    """Return one colour for each instance."""
    colours: list[Colour] = []
    for idx, label in enumerate(labels):
        hue = spread_hue(label if num_classes > 1 else idx)
        lightness = (0.56, 0.48, 0.66)[idx % 3]
        red, green, blue = (round(255 * value) for value in colorsys.hls_to_rgb(hue, lightness, 0.9))
        colours.append((red, green, blue))
    return colours


def _paint(picture: Image.Image, region: _Region, mask: NDArray[np.bool_], colour: Colour, opacity: float) -> None:
    """Mix a colour into the pixels of a mask within a region, in place."""
    share = Image.fromarray(mask.astype(np.uint8) * np.uint8(round(255 * opacity)))
    picture.paste(colour, (region.left, region.top), share)


def _contour(mask: NDArray[np.bool_], thickness: int) -> NDArray[np.bool_]:
    """Return the outermost pixels of a mask, `thickness` deep."""
    inside = np.pad(mask, 1)
    for _ in range(thickness):
        core = inside[1:-1, 1:-1] & inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:]
        inside = np.pad(core, 1)
    return mask & ~inside[1:-1, 1:-1]


def _write_labels(
    picture: Image.Image, regions: Sequence[_Region], texts: Sequence[tuple[str, str]], colours: Sequence[Colour]
) -> None:
    """Write a label at every region that has room for it, in place. texts: for each region a long and a short one."""
    draw = ImageDraw.Draw(picture)
    font = _font(_text_size(picture))
    is_taken = np.zeros((picture.height, picture.width), dtype=bool)
    room = _LABEL_SHARE * is_taken.size
    for region, (long_text, short_text), colour in zip(regions, texts, colours, strict=True):
        if room <= 0:
            break
        for text in (long_text, short_text):
            box = _free_box(draw, text, font, region, is_taken) if text else None
            if box is None:
                continue
            left, top, right, bottom = box
            is_taken[top:bottom, left:right] = True
            room -= (bottom - top) * (right - left)
            luminance = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
            draw.rectangle((left, top, right - 1, bottom - 1), fill=colour)
            ink = (0, 0, 0) if luminance > 110 else (255, 255, 255)
            draw.text(((left + right) / 2, (top + bottom) / 2), text, fill=ink, font=font, anchor="mm")
            break


def _free_box(
    draw: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont, region: _Region, is_taken: NDArray[np.bool_]
) -> tuple[int, int, int, int] | None:
    """Return left, top, right and bottom of a label inside the picture that covers no other label, or None."""
    padding = max(1, int(font.size) // 5)
    width = int(draw.textlength(text, font=font)) + 2 * padding
    height = int(font.size) + padding
    rows, columns = region.mask.shape
    picture_height, picture_width = is_taken.shape
    if width > max(1.6 * columns, 0.12 * picture_width) or width > picture_width or height > picture_height:
        return None
    for left, top in (
        (region.left, region.top - height),
        (region.left, region.top),
        (region.left, region.top + rows),
        (region.left + (columns - width) // 2, region.top + (rows - height) // 2),
    ):
        left = min(max(left, 0), picture_width - width)
        top = min(max(top, 0), picture_height - height)
        if not is_taken[top : top + height, left : left + width].any():
            return left, top, left + width, top + height
    return None


def _text_size(picture: Image.Image) -> int:
    """Return the height of label text in pixels for a picture of this size."""
    return max(10, round(min(math.sqrt(picture.width * picture.height) / 50, min(picture.size) / 8)))


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """Return the sans-serif font that comes with matplotlib, which covers more characters than Pillow's own."""
    import matplotlib  # here, because it takes a while to import and most runs draw nothing

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)
