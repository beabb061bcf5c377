"""Plans and methods from plain values and back."""

import pytest

from vispeft.errors import PlanError
from vispeft.peft import IA3, Adapter, LoRA, Plan, ScaleShift, inject, method_from_dict

PLAN = Plan(
    {"a.*": LoRA(8, 16.0, "qv"), "b": [Adapter(reduction=4, count=2), ScaleShift()], "c": IA3("kv")}, ["head.**"]
)


def test_plan__survives_the_way_through_plain_values() -> None:
    assert Plan.from_dict(PLAN.to_dict()) == PLAN


def test_lora__has_a_scale_of_one_unless_alpha_says_otherwise() -> None:
    assert LoRA(8).scale == 1
    assert LoRA(8, alpha=16).scale == 2


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"method": "lroa", "rank": 8}, "`lroa` is not a method. Did you mean `lora`?"),
        ({"method": "lora", "rnk": 8}, "`rnk` is not an option of `lora`. Did you mean `rank`?"),
        ({"method": "lora"}, "`lora` needs `rank`"),
        ({"method": "lora", "rank": 0}, "`rank` must be at least 1, but is 0"),
        ({"method": "lora", "rank": "8"}, "`rank` must be of type int, but is '8'"),
        ({"method": "lora", "rank": True}, "`rank` must be of type int, but is True"),
        ({"method": "lora", "rank": 8, "alpha": "x"}, "`alpha` must be of type float or null"),
        ({"method": "lora", "rank": 8, "parts": "vq"}, "`parts` must be some of q, k, v in this order"),
        ({"method": "lora", "rank": 8, "dropout": 1.0}, "`dropout` must be at least 0 and below 1"),
        ({"method": "adapter", "width": 8, "chain": "first"}, "`chain` must be one of additive, last"),
        ({"method": "adapter", "width": 8, "chain": "last", "parallel": True}, "`chain` must be additive"),
        ({"method": "lora", "rank": 8, "alpha": float("nan")}, "`alpha` must be finite"),
        ({"method": "lora", "rank": 8, "alpha": 0.0}, "`alpha` must be finite and not 0"),
        ({"method": "adapter", "width": 8, "scale": 0.0}, "`scale` must be finite and not 0"),
        ({"method": "adapter"}, "Exactly one of `width` and `reduction` must be given, but neither is"),
        ({"method": "adapter", "width": 8, "reduction": 4}, "but both are"),
        ({"method": "adapter", "width": 8, "count": -1}, "`count` must be at least 0"),
        ({"method": "adapter", "width": 8, "activation": "tanh"}, "`activation` must be one of gelu, relu, silu"),
        ({"rank": 8}, "A method must be written as"),
        (["lora"], "A method must be written as"),
    ],
)
def test_method_from_dict__says_what_is_wrong(values: object, message: str) -> None:
    with pytest.raises(PlanError) as caught:
        method_from_dict(values)  # type: ignore[arg-type]
    assert message in str(caught.value)


def test_from_dict__names_the_pattern_of_a_wrong_method() -> None:
    with pytest.raises(PlanError, match=r"`blocks\.\*`: `rank` must be at least 1"):
        Plan.from_dict({"deltas": {"blocks.*": {"method": "lora", "rank": 0}}})
    with pytest.raises(PlanError, match="`delta` is not a key of a plan"):
        Plan.from_dict({"delta": {}})
    with pytest.raises(PlanError, match="`train` must be a list"):
        Plan.from_dict({"train": "head"})


@pytest.mark.parametrize(
    ("plan", "trained"),
    [
        (Plan.full(), {"conv", "bn", "grouped", "blocks", "self_attn", "reader", "head"}),
        (Plan.head_only(), {"head"}),
        (Plan.last_blocks(1), {"blocks", "head"}),
        (Plan.norms(), {"bn", "blocks", "head"}),
        (Plan.norms("bn"), {"bn", "head"}),
        (Plan.biases(), {"conv", "bn", "grouped", "blocks", "self_attn", "head"}),
    ],
    ids=["full", "head only", "last block", "norms", "batch norm", "biases"],
)
def test_plan__full_and_partial_fine_tuning_are_plans(build, plan: Plan, trained: set[str]) -> None:
    model = build()
    inject(model, plan)
    thawed = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert {name.split(".")[0] for name in thawed} == trained
    if plan == Plan.last_blocks(1):
        assert not any(name.startswith("blocks.0.") for name in thawed)
