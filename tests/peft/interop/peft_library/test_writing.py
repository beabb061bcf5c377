"""Directories written here are the same function when read here and by the peft library."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from vispeft.errors import PlanError
from vispeft.peft import (
    IA3,
    OFT,
    AdaLoRA,
    Adapter,
    DoRA,
    FourierFT,
    LoHa,
    LoKr,
    LoRA,
    Plan,
    ScaleShift,
    VeRA,
    inject,
    load_peft,
    save_peft,
)

Build = Callable[[], nn.Module]
Shake = Callable[[nn.Module], None]

QKV = "net.blocks.*.attn.qkv"
FC1 = "net.blocks.*.mlp.fc1"

PLANS = {
    "lora": Plan({FC1: LoRA(2, 8), "net.conv": LoRA(3, 3), "net.blocks.1.attn.proj": LoRA(4)}, ["net.head"]),
    "lora parts": Plan({QKV: LoRA(2, 6, parts="qv")}, ["net.bn", "net.head"]),
    "lora starts": Plan({QKV: LoRA(2, 6, parts="qv", start="pissa"), "net.conv": LoRA(2, start="orthogonal")}),
    "lora start of a weight": Plan({"weights.p": LoRA(2, start="milora"), "head.weight": LoRA(1, start="pissa")}),
    "lora scaling": Plan({QKV: LoRA(2, 6, scaling="sqrt_rank")}),
    "lora embedding module": Plan({"tokens": LoRA(2, 3)}),
    "lora dropout": Plan({QKV: LoRA(2, dropout=0.5)}),
    "lora sum": Plan({QKV: (LoRA(2, 5), LoRA(3)), "net.conv": (LoRA(1), LoRA(1, 0.5))}),
    "lora weights": Plan({f"{QKV}.weight": LoRA(2, parts="v"), "plain.weight": LoRA(2)}),
    "lora module and weight": Plan({"head": LoRA(2), "head.weight": LoRA(1, 3)}),
    "lora parameters": Plan({"weights.p": LoRA(2), "weights.q": LoRA(1, 4), "weights.inner": LoRA(3)}),
    "lora parameters in another order": Plan({"weights.q": LoRA(2), "weights.p": LoRA(1)}),
    "lora parameters and bias": Plan({"weights.p": LoRA(2), "weights.q": LoRA(1)}, ["weights.inner.bias"]),
    "lora groups": Plan({"grouped": LoRA(2, 3), "net.grouped.weight": LoRA(1)}),
    "lora embedding": Plan({"tokens.weight": LoRA(2, 3)}),
    "lora attention": Plan({"net.self_attn.in_proj_weight": LoRA(2, 6, parts="v")}, ["net.head"]),
    "lora attention out": Plan({"net.self_attn.out_proj.weight": LoRA(3)}, ["net.self_attn.out_proj.bias"]),
    "lora both of attention": Plan(
        {"net.self_attn.in_proj_weight": LoRA(2, 6), "net.self_attn.out_proj.weight": LoRA(3)}
    ),
    "lora biases": Plan({QKV: LoRA(2)}, ["**.bias"]),
    "lora biases of sites": Plan({QKV: LoRA(2)}, [f"{QKV}.bias"]),
    "lora biases of others": Plan({QKV: LoRA(2)}, [f"{FC1}.bias", "net.bn"]),
    "lora norms": Plan({QKV: LoRA(2)}, ["net.blocks.*.norm1", "net.bn.bias"]),
    "lora half a module": Plan({QKV: LoRA(2)}, ["head.weight"]),
    "lora head of many": Plan({"head": LoRA(2)}),
    "lora head in full of many": Plan({QKV: LoRA(2)}, ["head"]),
    "lora heads mixed": Plan({"head": LoRA(2), "net.head": LoRA(3, 1)}, ["aux.head"]),
    "lora listed in full": Plan({QKV: LoRA(2)}, ["listed.0"]),
    "lora embedding in full": Plan({QKV: LoRA(2)}, ["tokens"]),
    "lora many sites": Plan({"net.**.fc1 | net.**.fc2 | net.**.qkv | net.**.proj": LoRA(1)}),
    "dora": Plan({FC1: DoRA(2, 8), "net.conv": DoRA(3), "net.blocks.1.attn.qkv": DoRA(2, parts="qv")}, ["**.bias"]),
    "adalora dropout": Plan({QKV: AdaLoRA(2, dropout=0.5)}),
    "adalora": Plan({QKV: AdaLoRA(2, 5, parts="qv"), "net.conv": AdaLoRA(3)}, ["head", "net.bn"]),
    "vera": Plan({f"{QKV} | {FC1}": VeRA(4)}, [f"{QKV}.bias"]),
    "loha": Plan({QKV: LoHa(2, 3), "net.conv | grouped": LoHa(3)}, ["net.bn"]),
    "lokr": Plan({QKV: LoKr(2), FC1: LoKr(1, 3)}, ["net.bn"]),
    "lokr factor": Plan({QKV: LoKr(2, factor=2), "net.conv": LoKr(2, factor=2)}),
    "fourierft": Plan({QKV: FourierFT(12, 20.0, seed=5), FC1: FourierFT(5, 20.0, seed=5)}, ["**.bias"]),
    "fourierft of two shapes": Plan({f"{QKV} | {FC1}": FourierFT(12)}),
    "ia3": Plan({QKV: IA3("kv"), "net.conv | grouped": IA3()}, ["net.head"]),
    "ia3 inputs": Plan({QKV: IA3("v"), "net.blocks.*.mlp.fc2 | net.conv | head": IA3(side="input")}, ["net.head"]),
    "oft": Plan({f"{QKV} | {FC1} | head": OFT(4)}, [f"{QKV}.bias"]),
    "norms": Plan({}, ["net.bn", "net.blocks.*.norm*"]),
    "norms and head": Plan({}, ["net.bn", "net.blocks.*.norm*", "net.head"]),
    "head": Plan({}, ["head"]),
    "biases": Plan({}, ["**.bias"]),
}


@pytest.fixture(params=PLANS.values(), ids=PLANS)
def plan(request: pytest.FixtureRequest) -> Plan:
    found: Plan = request.param
    return found


def test_save_peft__is_read_back_as_the_same_function(
    plan: Plan, build: Build, images: Tensor, shake: Shake, tmp_path: Path
) -> None:
    model, fresh = build(), build()
    inject(model, plan)
    shake(model.eval())
    assert not torch.equal(model(images), fresh(images))
    save_peft(model, tmp_path)
    load_peft(fresh, tmp_path)
    torch.testing.assert_close(fresh(images), model(images))


@pytest.mark.filterwarnings("ignore")
def test_save_peft__is_the_same_function_in_the_library(
    plan: Plan, build: Build, images: Tensor, shake: Shake, tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft", reason="the peft library is an extra")
    model = build()
    inject(model, plan)
    shake(model.eval())
    save_peft(model, tmp_path)
    theirs = peft.PeftModel.from_pretrained(build(), str(tmp_path)).eval()
    torch.testing.assert_close(theirs(images), model(images))
    # what the library writes in turn is no less
    theirs.save_pretrained(str(tmp_path / "again"))
    ours = build()
    load_peft(ours, tmp_path / "again")
    torch.testing.assert_close(ours(images), model(images))


def test_save_peft__writes_the_kept_triplets_alone(build: Build, images: Tensor, shake: Shake, tmp_path: Path) -> None:
    model = build()
    inject(model, Plan({QKV: AdaLoRA(3)}))
    shake(model)
    first, second = (model.net.blocks[index].attn.qkv.adalora for index in (0, 1))
    with torch.no_grad():
        first.triplets.choose(torch.tensor([False, True, False]), is_last=True)
        second.triplets.choose(torch.tensor([True, False, True]), is_last=True)
    save_peft(model, tmp_path)
    ours = build()
    load_peft(ours, tmp_path)
    torch.testing.assert_close(ours(images), model(images))
    assert [ours.net.blocks[index].attn.qkv.adalora.method.rank for index in (0, 1)] == [1, 2]


def test_save_peft__names_sites_exactly_by_a_pattern_where_names_end_alike(build: Build, tmp_path: Path) -> None:
    model = build()
    inject(model, Plan({"head": LoRA(2)}))
    save_peft(model, tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"] == "head"


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (Plan({"head": Adapter(width=2)}), r"no counterpart for `head\.adapter`"),
        (Plan({"head": ScaleShift()}), r"no counterpart for `head\.scale_shift`"),
        (Plan({"head": OFT(2), "net.head": OFT(4)}), "blocks of different sizes"),
        (Plan({"net.conv": OFT(3)}), r"no counterpart for `net\.conv\.oft`"),
        (Plan({"head": (IA3(), LoRA(2))}), r"different methods in one adapter, such as `head\.ia3` and `head\.lora`"),
        (Plan({"net.bn": IA3()}), r"no counterpart for `net\.bn\.ia3`"),
        (Plan({"head": (DoRA(2), LoRA(2))}), "DoRA and another delta at one site, `head`"),
        (Plan({"net.conv": DoRA(2), "head": LoRA(2)}), r"at every site or at none, but here `head` has LoRA"),
        (Plan({"net.self_attn.in_proj_weight": DoRA(2)}), r"no counterpart for `net\.self_attn\.in_proj_weight\.dora`"),
        (Plan({"grouped": DoRA(2)}), "no DoRA for convolutions with groups: `grouped` has 2"),
        (Plan({"grouped": AdaLoRA(2)}), r"`grouped\.adalora`, at a convolution with groups"),
        (Plan({"head": VeRA(2), "net.head": VeRA(3)}), "one pair of projections for all sites"),
        (Plan({"head": FourierFT(2), "net.head": FourierFT(2, seed=1)}), "one scale and one seed for all sites"),
        (Plan({"head": FourierFT(2), "net.head": FourierFT(3), QKV: FourierFT(3)}), "number of frequencies at"),
        (Plan({"head": LoKr(1, factor=1), QKV: LoKr(1, factor=4)}), "one `decompose_factor` for all sites"),
        (Plan({"head": LoRA(2)}, ["scale"]), "no counterpart for `scale`, a parameter of the model itself"),
        (Plan({"head": LoRA(2)}, ["head"]), "`head.bias` in full, since `head` has a delta"),
        (Plan({"net.head": LoRA(2)}, ["head"]), "would also train `net.head`, whose name ends in `head`"),
        (Plan({"listed.0": LoRA(2)}), "cannot adapt `listed.0`: `listed` also holds it in an attribute"),
        (Plan({"listed.0": LoRA(2)}, ["listed.1"]), "cannot adapt `listed.0`"),
        (Plan({"weights.p": LoRA(2)}, ["weights.q"]), r"no counterpart for `weights\.q` in full"),
        (
            Plan({"weights.p": LoRA(2)}, ["weights.inner"]),
            r"`weights\.inner\.bias` in full, since `weights\.inner` has",
        ),
        (
            Plan({"net.self_attn.in_proj_weight": LoRA(2)}, ["net.self_attn.out_proj"]),
            r"`net\.self_attn\.out_proj\.bias`",
        ),
        (Plan({}), "no counterpart for a plan that trains nothing"),
        (Plan.full(), "no counterpart for `scale`, a parameter of the model itself"),
    ],
)
def test_save_peft__refuses_what_has_no_counterpart(plan: Plan, message: str, build: Build, tmp_path: Path) -> None:
    model = build()
    inject(model, plan)
    with pytest.raises(PlanError, match=message):
        save_peft(model, tmp_path)
    assert not list(tmp_path.iterdir())


def test_save_peft__refuses_modules_of_several_names(build: Build, tmp_path: Path) -> None:
    model = build()
    model.twin = model.head
    inject(model, Plan({"head": LoRA(2)}))
    with pytest.raises(PlanError, match=r"cannot adapt `head`: the model has it under several names \(head, twin\)"):
        save_peft(model, tmp_path)


@pytest.mark.filterwarnings("ignore")
def test_save_peft__writes_shared_modules_in_full_under_all_names(
    build: Build, images: Tensor, shake: Shake, tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft", reason="the peft library is an extra")

    def shared() -> nn.Module:
        model = build()
        model.weights.inner = model.head
        return model

    model = shared()
    inject(model, Plan({QKV: LoRA(1)}, ["head"]))
    shake(model)
    save_peft(model, tmp_path)
    theirs = peft.PeftModel.from_pretrained(shared(), str(tmp_path)).eval()
    torch.testing.assert_close(theirs(images), model(images))
    ours = shared()
    load_peft(ours, tmp_path)
    torch.testing.assert_close(ours(images), model(images))


def test_save_peft__refuses_dora_on_a_row_of_zeros(build: Build, tmp_path: Path) -> None:
    model = build()
    with torch.no_grad():
        model.head.weight[2] = 0
    inject(model, Plan({"head": DoRA(2)}))
    with pytest.raises(PlanError, match="a row of zeros"):
        save_peft(model, tmp_path)


@pytest.mark.parametrize("change", [{"dilation": (2, 2)}, {"padding_mode": "reflect"}], ids=["dilation", "padding"])
def test_save_peft__refuses_a_convolution_that_the_library_does_not_follow(
    change: dict[str, object], build: Build, tmp_path: Path
) -> None:
    model = build()
    for name, value in change.items():
        setattr(model.net.conv, name, value)
    inject(model, Plan({"net.conv": LoRA(2)}))
    with pytest.raises(PlanError, match=r"forgets dilation and padding mode: at `net\.conv`"):
        save_peft(model, tmp_path)
