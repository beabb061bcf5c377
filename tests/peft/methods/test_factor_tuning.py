"""FacT: shared factors, sizes by the paper's formulas, files, and refusals."""

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import nn

from vispeft.errors import PlanError
from vispeft.peft import FacT, Plan, count, inject, load_adapter, save_adapter
from vispeft.peft.inject import attached

SITES = "blocks.*.attn.qkv | blocks.*.attn.proj | blocks.*.mlp.fc1 | blocks.*.mlp.fc2"


def maps() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 8))


@pytest.mark.parametrize("form", ["tt", "tk"])
def test_fact__has_as_many_parameters_as_the_paper(form: str) -> None:
    """`2 d r + 12 L r^2` in tensor-train form and `2 d r + 12 L r + r^3` in Tucker form, for a ViT of L blocks."""
    depth, width, rank = 2, 192, 8
    model = timm.create_model("vit_tiny_patch16_224", depth=depth, num_classes=0)
    inject(model, Plan({SITES: FacT(rank, form=form)}))
    own = 12 * depth * rank**2 if form == "tt" else 12 * depth * rank + rank**3
    assert count(model).trainable == 2 * width * rank + own


@pytest.mark.parametrize("form", ["tt", "tk"])
def test_fact__shares_factors_which_the_file_has_once(form: str, tmp_path: Path) -> None:
    model, fresh, x = maps(), maps(), torch.randn(3, 8)
    inject(model, Plan({"0 | 2": FacT(4, form=form), "1.weight": FacT(4, form=form)}))
    deltas = [item.delta for item in attached(model)]
    assert len({delta.update.shared for delta in deltas}) == 1
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_()
    save_adapter(model, tmp_path / "fact.safetensors")
    names = [name.rpartition(".")[2] for name in load_file(tmp_path / "fact.safetensors")]
    assert sorted(names) == (["s", "s", "s", "u", "v"] if form == "tt" else ["core", "p", "p", "p", "u", "v"])
    load_adapter(fresh, tmp_path / "fact.safetensors")
    assert torch.equal(fresh(x), model(x))


def test_fact__refuses_what_it_cannot_serve() -> None:
    for sites, message in (
        ("1", r"`fact` serves nn\.Linear modules and matrices, but this is a LayerNorm"),
        ("0.bias", r"`fact` serves parameters \[out, in\], but this one is \[6\]"),
        ("0", "`rank` must be at most 2, the greatest common divisor of the widths of all sites, but is 4"),
    ):
        model = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(8, 8))
        with pytest.raises(PlanError, match=message):
            inject(model, Plan({"2": FacT(4), sites: FacT(4)}) if sites != "0" else Plan({"0": FacT(4)}))
    with pytest.raises(PlanError, match="`form` must be one of tt, tk, but is 'cp'"):
        FacT(2, form="cp")
