from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vispeft.models.exported.comparison import differing_output, example_batches


def outputs() -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 40, 3), (2, 40, 4), (2, 40, 8), (2, 8, 6, 6))
    return tuple(torch.randn(shape, generator=generator) for shape in shapes)


def test_differing_output__accepts_queries_in_another_order_and_few_other_ones() -> None:
    expected = outputs()
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    found = [*(tensor[:, order] for tensor in expected[:3]), expected[3]]
    assert differing_output(expected, tuple(found)) is None
    found[0][:, 0] += 1.0
    assert differing_output(expected, tuple(found)) is None


@pytest.mark.parametrize(
    ("place", "name"), [(0, "class_logits"), (1, "boxes"), (2, "mask_embeddings"), (3, "mask_features")]
)
def test_differing_output__names_the_output(place: int, name: str) -> None:
    expected = outputs()
    found = [tensor.clone() for tensor in expected]
    found[place] *= 1.01
    assert differing_output(expected, tuple(found)) == name
    found[place] = expected[place] * float("nan")
    assert differing_output(expected, tuple(found)) == name


def test_differing_output__knows_models_without_boxes() -> None:
    expected = tuple(tensor for place, tensor in enumerate(outputs()) if place != 1)
    assert differing_output(expected, expected) is None
    assert differing_output(expected, (expected[0], 1.01 * expected[1], expected[2])) == "mask_embeddings"


def test_example_batches__are_of_several_sizes_and_the_same_every_time() -> None:
    batches = example_batches(4, 32)
    assert [tuple(batch.shape) for batch in batches] == [(1, 4, 32, 32), (3, 4, 32, 32)]
    assert all(one.equal(other) for one, other in zip(batches, example_batches(4, 32), strict=True))
