from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from vispeft.data import (
    EvalTransform,
    InstanceDataset,
    Loader,
    TrainTransform,
    draw_loader,
    eval_draws,
    read_coco,
    train_draws,
)
from vispeft.errors import ConfigError, DataError
from vispeft.structures import Batch

STATISTICS: dict[str, Any] = {"pixel_mean": (100, 100, 100), "pixel_std": (50, 50, 50)}


@pytest.fixture
def dataset(write: Any, folder: Path, document: dict[str, Any]) -> InstanceDataset:
    return InstanceDataset(read_coco(write(document), folder), TrainTransform(40), seed=3)


def train_loader(dataset: InstanceDataset, *, workers: int = 0, **options: Any) -> Loader:
    return draw_loader(dataset, train_draws(dataset.coco_set, seed=0, **options), workers=workers, **STATISTICS)


def assert_equal(left: list[Batch], right: list[Batch]) -> None:
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        assert torch.equal(one.images, other.images)
        assert one.metas == other.metas
        for a, b in zip(one.targets, other.targets, strict=True):
            assert torch.equal(a.labels, b.labels)
            assert torch.equal(a.boxes, b.boxes)
            assert torch.equal(a.masks, b.masks)


def test_train_draws__repeats_fixed_variants(dataset: InstanceDataset) -> None:
    options = {"batch_size": len(dataset), "steps": 4, "variants": 2}

    def images(batch: Batch) -> dict[int, torch.Tensor]:
        return {meta.image_id: image for meta, image in zip(batch.metas, batch.images, strict=True)}

    first, second, third, fourth = map(images, train_loader(dataset, **options))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], third[key]) and torch.equal(second[key], fourth[key]) for key in first)
    assert not all(torch.equal(first[key], second[key]) for key in first)


def test_draw_loader__gives_the_same_batches_for_any_workers_and_start(dataset: InstanceDataset) -> None:
    options = {"batch_size": 3, "steps": 6}
    whole = list(train_loader(dataset, **options))
    assert len(whole) == 6
    assert whole[0].images.shape == (3, 3, 40, 40)
    assert_equal(list(train_loader(dataset, **options, workers=2)), whole)
    assert_equal(list(train_loader(dataset, **options, start_step=4)), whole[4:])


def test_draw_loader__leaves_the_global_random_state_alone(dataset: InstanceDataset) -> None:
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    list(train_loader(dataset, batch_size=2, steps=2))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_eval_draws__draws_every_image_once_in_order(dataset: InstanceDataset) -> None:
    plain = InstanceDataset(dataset.coco_set, EvalTransform(48))
    loader = draw_loader(plain, eval_draws(plain.coco_set, batch_size=8), size_divisor=32, **STATISTICS)
    for _ in range(2):
        (batch,) = loader
        assert [meta.image_id for meta in batch.metas] == [1, 2]
        assert batch.images.shape == (2, 3, 64, 64)
    assert len(loader) == 1


@pytest.mark.parametrize("workers", [0, 1])
def test_draw_loader__reports_a_lost_file_in_one_line(dataset: InstanceDataset, workers: int) -> None:
    for image in dataset.coco_set.images:
        assert image.path is not None
        image.path.unlink()
    loader = train_loader(dataset, batch_size=2, steps=2, workers=workers)
    with pytest.raises(DataError) as caught:
        list(loader)
    assert str(caught.value).endswith("does not exist.")
    assert "\n" not in str(caught.value)


def test_train_draws__balances_classes_on_request(dataset: InstanceDataset) -> None:
    options = {"batch_size": 1, "steps": 90, "balance_threshold": 2.0}
    ids = [batch.metas[0].image_id for batch in train_loader(dataset, sampler="class_balanced", **options)]
    # factors 2 and the square root of 2
    assert ids.count(1) / ids.count(2) == pytest.approx(2**0.5, rel=0.15)


@pytest.mark.parametrize(
    ("options", "named"),
    [({"batch_size": 0}, "`batch_size`"), ({"workers": -1}, "`workers`"), ({"sampler": "random"}, "`sampler`")],
)
def test_train_loader__refuses_bad_options(dataset: InstanceDataset, options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        train_loader(dataset, **{"batch_size": 1, "steps": 1, **options})
