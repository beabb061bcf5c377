"""LoRand and Compacter: counts by the papers' formulas, starts, what sites share, and refusals."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from vispeft.errors import PlanError
from vispeft.peft import Compacter, LoRand, Method, Plan, count, inject, load_adapter, save_adapter
from vispeft.peft.inject import attached


def injected(model: nn.Module, method: Method, sites: str = "*") -> nn.Module:
    torch.manual_seed(0)
    inject(model, Plan({sites: method}))
    return model


def test_lorand__counts_its_factors_and_starts_as_documented() -> None:
    """Four factors of each branch, one kernel of both maps, and two biases."""
    model = injected(nn.Sequential(nn.Linear(5, 60)), LoRand(width=30, rank=8, branches=2))
    assert count(model).deltas == {"lorand": 2 * (2 * 8 * (60 + 30) + 8 * 8) + 30 + 60}
    own = dict(attached(model)[0].delta.named_parameters())
    for name in ("down_p", "down_q", "kernel", "up_p"):
        bound = own[name].shape[-1] ** -0.5
        assert 0.9 * bound < own[name].abs().max() <= bound, name
    assert not own["up_q"].any()
    assert not own["up_b"].any()


def test_lorand__shares_the_kernel_between_both_maps() -> None:
    model = injected(nn.Sequential(nn.Linear(4, 4)), LoRand(width=3, rank=2))
    own = dict(attached(model)[0].delta.named_parameters())
    with torch.no_grad():
        own["up_q"].fill_(0.5)
        own["kernel"].zero_()
    x = torch.randn(2, 4)
    # without the kernels both maps are zero, and their biases are left
    assert torch.allclose(model(x), F.linear(x, model[0].weight, model[0].bias))


def test_compacter__counts_its_factors_and_the_matrices_of_all_sites_once() -> None:
    """Of each map `r (in + out)`, with biases; `n ** 3` in all sites together."""
    model = injected(nn.Sequential(nn.Linear(5, 48), nn.Linear(48, 16)), Compacter(width=8, n=4, rank=1))
    sites = sum(2 * (width + 8) + 8 + width for width in (48, 16))
    assert count(model).deltas == {"compacter": sites + 4**3}
    first, second = (item.delta for item in attached(model))
    assert first.shared.a is second.shared.a


def test_compacter__starts_as_documented() -> None:
    model = injected(nn.Sequential(nn.Linear(5, 400)), Compacter(width=40, n=10, rank=2))
    own = dict(attached(model)[0].delta.named_parameters())
    assert 0.009 < own["shared.a"].std() < 0.011
    for name in ("down_s", "down_t", "up_s"):
        bound = (2 * 6 / sum(own[name].shape[1:])) ** 0.5
        assert 0.9 * bound < own[name].abs().max() <= bound, name
    assert not any(own[name].any() for name in ("down_b", "up_t", "up_b"))


def test_compacter__is_saved_and_restored_with_one_set_of_matrices(tmp_path: Path) -> None:
    base = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 8))
    model = injected(copy.deepcopy(base), Compacter(width=4, n=2))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_()
    save_adapter(model, tmp_path / "compacter.safetensors")
    assert sum(name.endswith("shared.a") for name in load_file(tmp_path / "compacter.safetensors")) == 1
    load_adapter(base, tmp_path / "compacter.safetensors")
    x = torch.randn(3, 6)
    assert torch.equal(base(x), model(x))
    first, second = (item.delta for item in attached(base))
    assert first.shared.a is second.shared.a


@pytest.mark.parametrize("method", [LoRand(width=4, rank=2), Compacter(width=4, n=2)], ids=["lorand", "compacter"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["NCHW", "NHWC"])
def test_composed_adapter__keeps_layout_and_precision(method: Method, memory_format: torch.memory_format) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3)).to(memory_format=memory_format)
    images = torch.randn(2, 3, 7, 9).to(memory_format=memory_format)
    stride = model(images).stride()
    injected(model, method)
    assert model(images).stride() == stride
    assert model.bfloat16()(images.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("method", [LoRand(width=4), Compacter(width=4)], ids=["lorand", "compacter"])
def test_composed_adapter__refuses_sites_that_it_cannot_serve(method: Method) -> None:
    with pytest.raises(PlanError, match=f"`{method.name}` serves modules, but this is a parameter"):
        inject(nn.Sequential(nn.Linear(4, 4)), Plan({"0.weight": method}))
    with pytest.raises(PlanError, match="has no linear map, convolution or norm that tells its width"):
        inject(nn.Sequential(nn.GELU()), Plan({"0": method}))


def test_composed_adapters__refuse_options_that_do_not_fit() -> None:
    with pytest.raises(PlanError, match="`rank` must be at least 1, but is 0"):
        LoRand(width=4, rank=0)
    with pytest.raises(PlanError, match="`n` must divide `width`, which is 6, but is 4"):
        Compacter(width=6)
    with pytest.raises(PlanError, match="`n` must divide the site's 6 outputs, but is 4"):
        inject(nn.Sequential(nn.Linear(4, 6)), Plan({"0": Compacter(width=4)}))
    with pytest.raises(PlanError, match="`activation` must be one of gelu, relu, silu"):
        Compacter(activation="tanh")
