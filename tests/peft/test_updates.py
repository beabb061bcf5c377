"""Updates of weights: their singular values and overlaps, against plain products of the factors."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from vispeft.peft import Adapter, LoRA, Plan, inject
from vispeft.peft.updates import Update, overlap, spectrum, weight_updates


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 8)
        self.conv = nn.Conv2d(3, 4, 3)
        self.qkv = nn.Parameter(torch.randn(9, 5))
        self.head = nn.Linear(8, 2)


def parameters(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def update(change: Tensor, weight: Tensor | None = None) -> Update:
    return Update("w", ("lora",), None, torch.eye(*change.shape) if weight is None else weight, change)


def diagonal(*values: float) -> Tensor:
    change = torch.zeros(4, 5)
    change[range(len(values)), range(len(values))] = torch.tensor(values)
    return change


def test_weight_updates__are_the_products_of_the_factors() -> None:
    torch.manual_seed(0)
    model = Net()
    base = parameters(model)
    inject(model, Plan({"fc": LoRA(2, alpha=6), "conv": LoRA(2), "qkv": LoRA(1)}, train=("head",)))
    with torch.no_grad():
        model.fc.lora.b.normal_()
        model.conv.lora.b.normal_()
        model.parametrizations.qkv[0].lora.b.normal_()
        model.head.weight += 0.5
        model.head.bias += 0.5
    updates, refused = weight_updates(model, base)
    assert not refused
    assert {each.name: (each.methods, each.rank) for each in updates} == {
        "fc.weight": (("lora",), 2),
        "conv.weight": (("lora",), 2),
        "qkv": (("lora",), 1),
        "head.weight": ((), None),
    }
    found = {each.name: each for each in updates}
    fc = model.fc.lora
    torch.testing.assert_close(found["fc.weight"].change, 3.0 * fc.b.detach() @ fc.a.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found["fc.weight"].weight, base["fc.weight"])
    assert found["conv.weight"].change.shape == (4, 27)
    assert [len(spectrum(found[name]).values) for name in ("fc.weight", "conv.weight", "qkv")] == [2, 2, 1]
    torch.testing.assert_close(model.fc.weight.detach(), base["fc.weight"], rtol=0, atol=0)


def test_weight_updates__leave_out_what_is_no_change_of_a_matrix() -> None:
    model = Net()
    base = parameters(model) | {"head.weight": torch.zeros(3, 8)}
    inject(model, Plan({"fc": Adapter(width=2), "conv": LoRA(2)}, train=("head",)))
    with torch.no_grad():
        model.head.weight += 0.5
    updates, refused = weight_updates(model, base)
    # LoRA starts as no change; the head's rows were others before
    assert not updates
    assert list(refused) == ["fc.adapter"]


def test_spectrum__of_known_singular_values() -> None:
    found = spectrum(update(diagonal(3.0, 1.0), 2 * torch.eye(4, 5)))
    assert found.values == pytest.approx((3.0, 1.0))
    assert found.effective_rank == pytest.approx(math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25))))
    # 9 / 10 of the squared norm is in the first direction, whose part of the weight is 2
    assert found.energy_rank == 1
    assert found.amplification == pytest.approx(1.5)
    assert found.relative_norm == pytest.approx(math.sqrt(10 / 16))
    assert found.share_by_chance == pytest.approx(1 / 20)


def test_spectrum__place_in_the_weight() -> None:
    weight = torch.diag(torch.tensor([4.0, 3.0, 2.0, 1.0]))
    top, bottom = torch.zeros(4, 4), torch.zeros(4, 4)
    top[0, 0], bottom[3, 3] = 1.0, 1.0
    assert spectrum(update(top, weight)).share_in_top == pytest.approx(1.0)
    assert spectrum(update(bottom, weight)).share_in_top == pytest.approx(0.0)
    assert spectrum(update(top, weight)).amplification == pytest.approx(1 / 4)
    assert spectrum(update(top, torch.zeros(4, 4))).amplification is None


def test_overlap__of_equal_rotated_and_orthogonal_directions() -> None:
    torch.manual_seed(0)
    first = update(diagonal(2.0, 2.0))
    mixed = torch.linalg.qr(torch.randn(4, 4))[0] @ diagonal(2.0, 2.0)
    other = torch.zeros(4, 5)
    other[0, 3], other[1, 4] = 1.0, 1.0
    assert overlap(first, update(mixed)) == pytest.approx(1.0, abs=1e-5)
    assert overlap(first, update(other)) == pytest.approx(0.0, abs=1e-6)
    # one direction of two within the other's two
    assert overlap(first, update(diagonal(2.0))) == pytest.approx(1.0, abs=1e-5)
