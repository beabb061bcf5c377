"""Contact sheets: images with their masks and classes, original and as augmented in training."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from vispeft.coco.sets import CocoSet
from vispeft.data.reading.channels import RGB, shown
from vispeft.data.reading.dataset import Draw, InstanceDataset, Sample
from vispeft.data.transforms.augmentation import EvalTransform, Transform
from vispeft.errors import ConfigError
from vispeft.io.pictures import write_picture
from vispeft.visualization.colours import spread_hue

TILE = 320
GAP = 8
CAPTION = 18
LEGEND_ROW = 22
BACKGROUND = (24, 26, 30)
TEXT = (225, 228, 232)
MASK_OPACITY = 0.42

Pixels = NDArray[np.uint8]


def contact_sheet(
    coco_set: CocoSet,
    out: Path,
    *,
    transform: Transform | None = None,
    count: int = 6,
    augmented: int = 3,
    seed: int = 0,
    num_channels: int = RGB,
) -> None:
    """Write a picture of `count` images, a row each: the original, then `augmented` draws of `transform`.

    transform: None shows the originals alone, several in a row
    num_channels: of the images; others than RGB are shown by their first three, or in grey
    """
    if count < 1 or augmented < 1:
        raise ConfigError(f"`count` and `augmented` must be at least 1, but are {count} and {augmented}.")
    colours = class_colours(len(coco_set.categories))
    indices = sorted(np.random.default_rng(seed).permutation(len(coco_set))[:count].tolist())
    plain_set = InstanceDataset(coco_set, EvalTransform(TILE), seed=seed, num_channels=num_channels)
    originals = [plain_set[index] for index in indices]
    tiles = [[_tile(sample, colours, _caption(sample), TILE)] for sample in originals]
    if transform is None:
        flat = [tile for row in tiles for tile in row]
        tiles = [flat[i : i + 4] for i in range(0, len(flat), 4)]
    else:
        augmented_set = InstanceDataset(coco_set, transform, seed=seed, num_channels=num_channels)
        for row, index in zip(tiles, indices, strict=True):
            for number in range(1, augmented + 1):
                caption = f"augmented {number} of {augmented}"
                row.append(_tile(augmented_set[Draw(index, number)], colours, caption, transform.image_size))
    write_picture(out, Image.fromarray(_sheet(tiles, _legend(coco_set, colours))))


def class_colours(num_classes: int) -> list[tuple[int, int, int]]:
    """Return colours far from each other, bright enough for dark and light pictures."""
    colours = []
    for idx in range(num_classes):
        value = (1.0, 0.82, 0.92)[idx % 3]
        red, green, blue = colorsys.hsv_to_rgb((0.02 + spread_hue(idx)) % 1, 0.78, value)
        colours.append((round(red * 255), round(green * 255), round(blue * 255)))
    return colours


def draw_masks(image: Pixels, masks: NDArray[np.bool_], colours: Sequence[tuple[int, int, int]]) -> Pixels:
    """Return the image with filled and outlined masks. image: [h, w, 3]; masks: [T, h, w]; colours: T of them."""
    drawn = image.copy()
    # large ones first, so that small ones in front of them stay visible
    for idx in sorted(range(len(masks)), key=lambda idx: -int(masks[idx].sum())):
        mask, colour = masks[idx], np.array(colours[idx])
        drawn[mask] = (drawn[mask] * (1 - MASK_OPACITY) + colour * MASK_OPACITY).astype(np.uint8)
        contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        drawn = np.asarray(cv2.drawContours(drawn, contours, -1, colours[idx], 1, cv2.LINE_AA), np.uint8)
    return drawn


def _tile(sample: Sample, colours: Sequence[tuple[int, int, int]], caption: str, network_size: int) -> Pixels:
    """Return a sample with its masks and a caption, scaled from `network_size` to `TILE` pixels, without padding."""
    image = shown(sample.image.permute(1, 2, 0).numpy())
    labels = sample.labels.tolist()
    # with one class, instances differ in colour
    mask_colours = [colours[label] for label in labels] if len(colours) > 1 else class_colours(len(labels))
    scale = TILE / network_size
    width, height = (max(round(side * scale), 1) for side in (image.shape[1], image.shape[0]))
    resized = np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
    masks = np.zeros((len(labels), height, width), bool)
    for out, mask in zip(masks, sample.masks.numpy(), strict=True):
        out[:] = cv2.resize(mask.astype(np.uint8) * 255, (width, height), interpolation=cv2.INTER_AREA) >= 128
    tile = np.empty((CAPTION + height, TILE, 3), np.uint8)
    tile[:] = BACKGROUND
    tile[CAPTION:, :width] = draw_masks(resized, masks, mask_colours)
    picture = Image.fromarray(tile)
    count = f"{len(labels)} instance{'' if len(labels) == 1 else 's'}"
    ImageDraw.Draw(picture).text((2, 1), f"{caption}, {count}", fill=TEXT, font=ImageFont.load_default(12))
    return np.asarray(picture)


def _caption(sample: Sample) -> str:
    """Return the file name, shortened, and the size of an image."""
    name = Path(sample.meta.file_name).name
    name = name if len(name) <= 28 else f"{name[:12]}...{name[-13:]}"
    return f"{name}  {sample.meta.width}x{sample.meta.height}"


def _sheet(rows: Sequence[Sequence[Pixels]], legend: Sequence[tuple[str, tuple[int, int, int]]]) -> Pixels:
    """Return rows of tiles on one sheet, below the legend."""
    columns = max(map(len, rows))
    width = columns * (TILE + GAP) + GAP
    places = _legend_places(legend, width)
    top = GAP + LEGEND_ROW * (1 + max([row for _, row in places], default=0))
    heights = [max(tile.shape[0] for tile in row) + GAP for row in rows]
    sheet = np.empty((top + sum(heights), width, 3), np.uint8)
    sheet[:] = BACKGROUND
    for i, row in enumerate(rows):
        y = top + sum(heights[:i])
        for j, tile in enumerate(row):
            x = GAP + j * (TILE + GAP)
            sheet[y : y + tile.shape[0], x : x + tile.shape[1]] = tile
    picture = Image.fromarray(sheet)
    draw = ImageDraw.Draw(picture)
    for (name, colour), (x, row_idx) in zip(legend, places, strict=True):
        y = GAP + row_idx * LEGEND_ROW
        draw.rectangle((x, y + 1, x + 12, y + 13), fill=colour)
        draw.text((x + 18, y - 1), name, fill=TEXT, font=ImageFont.load_default(13))
    return np.asarray(picture)


def _legend(
    coco_set: CocoSet, colours: Sequence[tuple[int, int, int]], at_most: int = 40
) -> list[tuple[str, tuple[int, int, int]]]:
    """Return name and colour of each class."""
    legend = [(name[:40], colour) for name, colour in zip(coco_set.class_names, colours, strict=True)]
    if len(legend) == 1:
        return [(f"{legend[0][0]} (a colour per instance)", TEXT)]
    num_more = len(legend) - at_most
    return legend[:at_most] + ([(f"and {num_more} more", BACKGROUND)] if num_more > 0 else [])


def _legend_places(legend: Sequence[tuple[str, tuple[int, int, int]]], width: int) -> list[tuple[int, int]]:
    """Return x and row of each legend entry, wrapped at `width`."""
    font = ImageFont.load_default(13)
    places, x, row = [], GAP, 0
    for name, _ in legend:
        length = 18 + round(font.getlength(name)) + 18
        if x + length > width and x > GAP:
            x, row = GAP, row + 1
        places.append((x, row))
        x += length
    return places
