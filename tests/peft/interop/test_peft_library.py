"""Directories of the peft library, read and written beside the library itself."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from vispeft.errors import CheckpointError, PlanError
from vispeft.peft import Adapter, DoRA, LoRA, Plan, inject, load_peft, save_peft
from vispeft.peft.inject import attached

Build = Callable[[], nn.Module]


@pytest.fixture
def build(build: Build) -> Build:
    """The network with a convolution that the library's LoRA can follow: it forgets the dilation."""

    def new() -> nn.Module:
        net = build()
        net.conv.dilation, net.conv.padding = (1, 1), (1, 1)
        return net

    return new


Shake = Callable[[nn.Module], None]

PLANS = {
    "linear and conv": Plan(
        {"blocks.*.mlp.fc1": LoRA(2, 8), "conv": LoRA(3, 3), "blocks.1.attn.proj": LoRA(4)}, ["head"]
    ),
    "fused parts": Plan({"blocks.*.attn.qkv": LoRA(2, 6, parts="qv")}, ["bn", "head"]),
    "attention": Plan({"self_attn.in_proj_weight": LoRA(2, 6, parts="v")}, ["head"]),
    "dora": Plan({"blocks.*.mlp.fc1": DoRA(2, 8), "conv": DoRA(3), "blocks.1.attn.qkv": DoRA(2, parts="qv")}, ["head"]),
    "attention, both": Plan({"self_attn.in_proj_weight": LoRA(2, 6), "self_attn.out_proj.weight": LoRA(3)}),
}


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_save_peft__is_read_back_as_the_same_function(
    plan: Plan, build: Build, images: Tensor, shake: Shake, tmp_path: Path
) -> None:
    model, fresh = build(), build()
    inject(model, plan)
    shake(model)
    save_peft(model, tmp_path)
    load_peft(fresh, tmp_path)
    torch.testing.assert_close(fresh(images), model(images))


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_save_peft__is_the_same_function_in_the_library(
    plan: Plan, build: Build, images: Tensor, shake: Shake, tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft", reason="the peft library is an extra")
    model = build()
    inject(model, plan)
    shake(model)
    save_peft(model, tmp_path)
    theirs = peft.PeftModel.from_pretrained(build(), str(tmp_path)).eval()
    torch.testing.assert_close(theirs(images), model(images))


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"use_dora": True}], ids=["lora", "rslora", "dora"])
def test_load_peft__is_the_same_function_as_in_the_library(
    options: dict[str, bool], build: Build, images: Tensor, shake: Shake, tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft", reason="the peft library is an extra")
    # the library has no DoRA for attentions
    attention = [] if "use_dora" in options else ["self_attn"]
    config = peft.LoraConfig(
        r=2,
        lora_alpha=6,
        target_modules=["fc1", "qkv", "conv", *attention],
        rank_pattern={"fc1": 3},
        alpha_pattern={"conv": 5},
        modules_to_save=["head", "bn"],
        **options,
    )
    theirs = peft.get_peft_model(build(), config)
    shake(theirs)
    theirs.eval().save_pretrained(str(tmp_path))
    ours = build()
    load_peft(ours, tmp_path)
    torch.testing.assert_close(ours(images), theirs(images))
    projections = {"self_attn.in_proj_weight", "self_attn.out_proj.weight"} if attention else set()
    assert {item.site for item in attached(ours)} >= {"conv", *projections}
    assert ours.head.weight.requires_grad


def test_load_peft__refuses_what_has_no_counterpart(build: Build, tmp_path: Path) -> None:
    model = build()
    inject(model, PLANS["linear and conv"])
    save_peft(model, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    for change, message in (({"peft_type": "VERA"}, "VERA"), ({"use_dora": True}, "no lora_magnitude_vector")):
        (tmp_path / "adapter_config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(CheckpointError, match=message):
            load_peft(build(), tmp_path)


def test_load_peft__refuses_another_model_by_name(build: Build, tmp_path: Path) -> None:
    model = build()
    inject(model, PLANS["linear and conv"])
    save_peft(model, tmp_path)
    with pytest.raises(CheckpointError, match="another base: this model has no `"):
        load_peft(nn.Sequential(nn.Linear(2, 2)), tmp_path)


def test_save_peft__refuses_adapters_by_name(build: Build, tmp_path: Path) -> None:
    model = build()
    inject(model, Plan({"blocks.0.attn.proj": Adapter(width=2)}))
    with pytest.raises(PlanError, match=r"`blocks\.0\.attn\.proj\.adapter` has no counterpart"):
        save_peft(model, tmp_path)


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (Plan({"conv": DoRA(2), "reader": LoRA(2)}), r"at every site or at none, but here `reader` has LoRA"),
        (Plan({"self_attn.in_proj_weight": DoRA(2)}), r"`self_attn\.in_proj_weight\.dora` has no counterpart"),
    ],
    ids=["mixed", "attention"],
)
def test_save_peft__refuses_dora_where_the_library_has_none(
    plan: Plan, message: str, build: Build, tmp_path: Path
) -> None:
    model = build()
    inject(model, plan)
    with pytest.raises(PlanError, match=message):
        save_peft(model, tmp_path)


def test_save_peft__refuses_dora_on_a_row_of_zeros(build: Build, tmp_path: Path) -> None:
    model = build()
    with torch.no_grad():
        model.reader.weight[2] = 0
    inject(model, Plan({"reader": DoRA(2)}))
    with pytest.raises(PlanError, match="a row of zeros"):
        save_peft(model, tmp_path)


def test_load_peft__refuses_magnitudes_of_another_size(build: Build, tmp_path: Path) -> None:
    model = build()
    inject(model, PLANS["dora"])
    save_peft(model, tmp_path)
    other = build()
    other.conv = nn.Conv2d(3, 6, 3)
    with pytest.raises(CheckpointError, match=r"`conv` has 8 magnitudes in the file, but is a Conv2d of another size"):
        load_peft(other, tmp_path)


@pytest.mark.parametrize("change", [{"dilation": (2, 2)}, {"padding_mode": "reflect"}], ids=["dilation", "padding"])
def test_save_and_load_peft__refuse_a_convolution_that_the_library_does_not_follow(
    change: dict[str, object], build: Build, tmp_path: Path
) -> None:
    plain, model = build(), build()
    inject(plain, Plan({"conv": LoRA(2)}))
    save_peft(plain, tmp_path)
    for name, value in change.items():
        setattr(model.conv, name, value)
    with pytest.raises(PlanError, match=r"forgets dilation and padding mode: at `conv`"):
        load_peft(model, tmp_path)
    inject(model, Plan({"conv": LoRA(2)}))
    with pytest.raises(PlanError, match=r"forgets dilation and padding mode: at `conv`"):
        save_peft(model, tmp_path)


def test_save_peft__refuses_a_convolution_with_groups(build: Build, tmp_path: Path) -> None:
    model = build()
    inject(model, Plan({"grouped": LoRA(2)}))
    with pytest.raises(PlanError, match=r"other factors for convolutions with groups: `grouped` has 4"):
        save_peft(model, tmp_path)
