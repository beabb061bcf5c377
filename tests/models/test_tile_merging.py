"""Instances of tiles become those of the image: none twice, none cut."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pycocotools import mask as mask_utils

from vispeft.coco.rle import boxes_of
from vispeft.coco.rle_windows import moved_rle
from vispeft.data.transforms.tiles import Tiling
from vispeft.models.tile_merging import WholeImages, merge_tiles
from vispeft.structures import ImageMeta, Instances, Window

HEIGHT, WIDTH = 90, 130


def encoded(mask: NDArray[np.bool_]) -> dict[str, object]:
    rle = mask_utils.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(mask.shape), "counts": rle["counts"].decode()}


def tiles_of(
    objects: list[NDArray[np.bool_]], labels: list[int], side: int = 40, overlap: float = 0.25
) -> list[tuple[ImageMeta, Instances]]:
    """What a perfect model finds in every tile; the score is the visible part of the object."""
    tiles, found = Tiling(side, overlap).tiles(HEIGHT, WIDTH), []
    for tile in tiles:
        parts = [mask[tile.top : tile.bottom, tile.left : tile.right] for mask in objects]
        seen = [i for i, part in enumerate(parts) if part.any()]
        scores = torch.tensor([parts[i].sum() / objects[i].sum() * (0.9 - 0.01 * i) for i in seen], dtype=torch.float32)
        order = scores.argsort(descending=True)
        rles = [encoded(parts[seen[i]]) for i in order.tolist()]
        chosen = torch.tensor([labels[seen[i]] for i in order.tolist()], dtype=torch.int64)
        meta = ImageMeta(
            5,
            "a.png",
            tile.bottom - tile.top,
            tile.right - tile.left,
            8,
            8,
            window=Window(tile.left, tile.top, HEIGHT, WIDTH, len(tiles)),
        )
        found.append((meta, Instances(scores[order], chosen, torch.from_numpy(boxes_of(rles)), rles)))
    return found


def disc(x: float, y: float, radius: float) -> NDArray[np.bool_]:
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return (rows - y) ** 2 + (columns - x) ** 2 < radius**2


@pytest.mark.parametrize("seed", range(5))
def test_moved_rle__is_the_mask_in_the_whole_image(seed: int) -> None:
    generator = np.random.default_rng(seed)
    window = generator.random((17, 11)) < (0.1, 0.5, 0.9, 0.0, 1.1)[seed]
    left, top = (0, 0, 29, 5, 7)[seed], (0, 13, 13, 4, 0)[seed]
    whole = np.zeros((30, 40), bool)
    whole[top : top + 17, left : left + 11] = window
    assert moved_rle(encoded(window), left, top, 30, 40) == encoded(whole)


def test_merge_tiles__gives_every_object_once_and_whole() -> None:
    # in one tile, in an overlap, across a border, larger than a tile, and two that touch across a border
    objects = [disc(10, 10, 6), disc(35, 20, 4), disc(66, 60, 14), disc(100, 40, 26), disc(30, 70, 8), disc(47, 70, 8)]
    labels = [0, 1, 0, 2, 0, 0]
    found = merge_tiles(tiles_of(objects, labels), 100)
    assert len(found) == len(objects)
    assert sorted(rle["counts"] for rle in found.rles) == sorted(str(encoded(mask)["counts"]) for mask in objects)
    expected = {str(encoded(mask)["counts"]): label for mask, label in zip(objects, labels, strict=True)}
    assert [expected[rle["counts"]] for rle in found.rles] == found.labels.tolist()
    assert (found.scores.diff() <= 0).all()
    torch.testing.assert_close(found.boxes_xyxy, torch.from_numpy(boxes_of(found.rles)))


def test_merge_tiles__keeps_classes_apart_and_the_best_of_the_limit() -> None:
    objects = [disc(35, 20, 4), disc(35, 20, 4), disc(80, 50, 5)]
    tiles = tiles_of(objects, [0, 1, 2])
    assert merge_tiles(tiles, 100).labels.tolist() == [0, 1, 2]
    assert merge_tiles(tiles, 2).labels.tolist() == [0, 1]
    assert len(merge_tiles([(meta, found) for meta, found in tiles_of([], [])], 2)) == 0


def test_whole_images__waits_for_the_last_tile() -> None:
    tiles = tiles_of([disc(66, 60, 14)], [3])
    whole = WholeImages(10)
    assert list(whole.of(tiles[:4])) == []
    ((meta, found),) = whole.of(tiles[4:])
    assert (meta.image_id, found.labels.tolist()) == (5, [3])
    plain = ImageMeta(6, "b.png", 8, 8, 8, 8)
    assert list(whole.of([(plain, found)])) == [(plain, found)]
