from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vispeft.data import read_coco, repeat_factors
from vispeft.data.loading.sampling import EvalBatches, TrainBatches, epoch_order


def batches(steps: int, start: int = 0, rank: int = 0, world: int = 1, size: int = 4) -> list[list[Any]]:
    factors = np.array([1.0, 1.0, 2.5, 1.0, 1.0])
    return list(TrainBatches(factors, size, steps, start, 7, rank, world))


def test_epoch_order__draws_each_image_its_share() -> None:
    assert sorted(epoch_order(np.ones(9), 0, 3)) == list(range(9))
    assert list(epoch_order(np.ones(9), 0, 3)) != list(epoch_order(np.ones(9), 0, 4))
    counts = Counter(i for epoch in range(400) for i in epoch_order(np.array([1.0, 2.25]), 0, epoch).tolist())
    assert counts[0] == 400
    assert counts[1] / 400 == pytest.approx(2.25, abs=0.06)


def test_train_batches__draw_fixed_variants_in_turn() -> None:
    anew = TrainBatches(np.ones(4), 2, 9, 0, 7, 0, 1)
    fixed = TrainBatches(np.ones(4), 2, 9, 0, 7, 0, 1, variants=3)
    # the same images in the same order; two batches make an epoch
    assert [[draw.index for draw in batch] for batch in fixed] == [[draw.index for draw in batch] for batch in anew]
    assert [{draw.number for draw in batch} for batch in fixed] == [{n} for n in (0, 0, 1, 1, 2, 2, 0, 0, 1)]
    assert list(TrainBatches(np.ones(4), 2, 9, 5, 7, 0, 1, variants=3)) == list(fixed)[5:]


@pytest.mark.parametrize("start", [1, 5, 19])
def test_train_batches__resume_exactly(start: int) -> None:
    assert batches(20, start) == batches(20)[start:]


def test_train_batches__number_every_draw_once() -> None:
    draws = [draw for batch in batches(20) for draw in batch]
    assert [draw.number for draw in draws] == list(range(80))


def test_train_batches__are_the_same_stream_for_any_number_of_processes() -> None:
    together = batches(10, size=4)
    apart = [batches(10, rank=rank, world=2, size=2) for rank in (0, 1)]
    assert [left + right for left, right in zip(*apart, strict=True)] == together


def test_eval_batches__take_every_image_once() -> None:
    for world in (1, 2, 3):
        parts = [EvalBatches(11, 4, rank, world) for rank in range(world)]
        assert all(len(list(part)) == len(part) for part in parts)
        assert sorted(draw.index for part in parts for batch in part for draw in batch) == list(range(11))


def test_repeat_factors__raise_images_of_rare_classes(write: Any, folder: Path, document: dict[str, Any]) -> None:
    coco_set = read_coco(write(document), folder)
    # `pair` is on one of two images: sqrt(2 / 0.5) = 2; `box` is on both: sqrt(2 / 1)
    np.testing.assert_allclose(repeat_factors(coco_set, 2.0), [2.0, 2**0.5])
    np.testing.assert_allclose(repeat_factors(coco_set, 0.1), [1.0, 1.0])
    # the median of 1 / 2 and 2 / 2 is 3 / 4
    np.testing.assert_allclose(repeat_factors(coco_set), [1.5**0.5, 1.0])
