"""Label maps to run lengths and back, and the colours of panoptic files."""

from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as mask_utils

from vispeft.coco.label_maps import VOID, colour_of_id, id_of_colour, mask_of, paint, rles_of_map, runs_of_map


@pytest.mark.parametrize("shape", [(7, 11), (1, 9), (9, 1), (1, 1)], ids=["area", "row", "column", "pixel"])
def test_rles_of_map__are_those_of_pycocotools(shape: tuple[int, int]) -> None:
    values = np.random.default_rng(3).choice([0, 2, 2, 500], shape)
    found = rles_of_map(values)
    assert found.keys() == set(np.unique(values).tolist()) - {VOID}
    for value, rle in found.items():
        mask = values == value
        assert rle["counts"].encode() == mask_utils.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]
        assert (mask_of(rle) == mask).all()


def test_runs_of_map__gives_zero_too_where_it_is_asked_for() -> None:
    values = np.array([[0, 0, 5], [0, 5, 5]])
    assert runs_of_map(values).keys() == {5}
    assert runs_of_map(values, None)[0].tolist() == [0, 3, 3]
    assert runs_of_map(values, None)[5].tolist() == [3, 3]
    assert runs_of_map(np.zeros((2, 2), int)) == {}


def test_paint__leaves_the_pixel_to_the_first() -> None:
    values = np.zeros((2, 3), np.int64)
    paint(values, np.array([[True, True, False]] * 2), 4)
    paint(values, np.array([[False, True, True]] * 2), 9)
    assert values.tolist() == [[4, 4, 9]] * 2


def test_id_of_colour__is_the_inverse_of_colour_of_id() -> None:
    ids = np.array([[0, 1, 255], [256, 70_000, 2**24 - 1]])
    colours = colour_of_id(ids)
    assert colours[1, 1].tolist() == [112, 17, 1]
    assert (id_of_colour(colours) == ids).all()
