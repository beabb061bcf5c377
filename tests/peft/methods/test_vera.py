"""One pair of random factors for all sites of equal methods: shared, counted once, saved once."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from vispeft.errors import PlanError
from vispeft.peft import Plan, VeRA, count, inject, load_adapter, save_adapter
from vispeft.peft.inject import attached
from vispeft.training.trained_tensors import trained_tensors


def maps() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 3), nn.Linear(3, 8), nn.Linear(8, 2))


def pairs(model: nn.Module) -> list[nn.Module]:
    return [item.delta.projections for item in attached(model)]


def test_vera__shares_one_pair_as_wide_as_the_widest_sites() -> None:
    model = maps()
    inject(model, Plan({"2": VeRA(4), "0 | 1.weight": VeRA(4)}))
    first, *others = pairs(model)
    assert all(other is first for other in others)
    assert first.a.shape == (4, 8)
    assert first.b.shape == (8, 4)
    assert count(model).deltas == {"vera": 3 * 4 + 3 + 8 + 2}


def test_vera__has_a_pair_for_each_set_of_options() -> None:
    model = maps()
    inject(model, Plan({"0": VeRA(4), "1": VeRA(4, start=0.2), "2": VeRA(4)}))
    first, second, third = pairs(model)
    assert first is third
    assert first is not second


def test_vera__is_saved_once_and_shared_again_after_loading(tmp_path: Path) -> None:
    model, fresh = maps(), maps()
    inject(model, Plan({"0 | 2": VeRA(4), "1": VeRA(4)}))
    save_adapter(model, tmp_path / "vera.safetensors")
    tensors = load_file(tmp_path / "vera.safetensors")
    assert sorted(tensors) == sorted(
        [f"{site}.vera.scale_{which}" for site in "012" for which in "bd"]
        + ["0.vera.projections.a", "0.vera.projections.b"]
    )
    load_adapter(fresh, tmp_path / "vera.safetensors")
    assert len(set(pairs(fresh))) == 1
    assert torch.equal(pairs(fresh)[0].a, pairs(model)[0].a)


def test_vera__gives_its_pair_to_the_checkpoint_of_a_run() -> None:
    model = maps()
    inject(model, Plan({"0 | 1": VeRA(4)}))
    names = trained_tensors(model.train())
    assert [name for name in names if "projections" in name] == ["0.vera.projections.a", "0.vera.projections.b"]


def test_vera__refuses_what_it_cannot_serve() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Linear(4, 4))
    with pytest.raises(PlanError, match=r"`0` at `0`: `vera` serves nn\.Linear modules and matrices, but this is"):
        inject(model, Plan({"1": VeRA(2), "0": VeRA(2)}))
    with pytest.raises(PlanError, match=r"`vera` serves parameters \[out, in\], but this one is \[4\]"):
        inject(model, Plan({"1.bias": VeRA(2)}))
    with pytest.raises(PlanError, match="`start` must be finite and not 0"):
        VeRA(2, start=0.0)
