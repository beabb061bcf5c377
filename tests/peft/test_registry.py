"""Methods of others: registered by an explicit call, then known by name everywhere."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import vispeft as vp
from vispeft.errors import CheckpointError, PlanError
from vispeft.peft import METHODS, describe, known_methods, method_from_dict


@dataclass(frozen=True)
class Bias(vp.Method):
    """`y + factor * b`; b starts at zero."""

    name: ClassVar[str] = "bias"
    factor: float = 1.0

    def for_module(self, module: nn.Module, context: vp.Context) -> vp.Delta:
        assert isinstance(module, nn.Linear)
        return BiasDelta(self, module.out_features)

    def for_parameter(self, parameter: Tensor, context: vp.Context) -> vp.WeightDelta:
        raise PlanError("`bias` serves modules.")


class BiasDelta(vp.Delta):
    def __init__(self, method: Bias, features: int) -> None:
        super().__init__(method)
        self.factor, self.b = method.factor, nn.Parameter(torch.zeros(features))

    def forward(self, x: Tensor, y: Tensor, base: nn.Module | None) -> Tensor:
        return y + self.factor * self.b

    def merged(self, weight: Tensor, bias: Tensor | None) -> None:
        return None


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The registry, empty, for one test."""
    registry: dict[str, Any] = {}
    monkeypatch.setattr("vispeft.peft.registry._registered", registry)
    return registry


def test_methods__every_one_is_found_by_its_own_name() -> None:
    assert {name: method.name for name, method in METHODS.items()} == {name: name for name in METHODS}


def test_register_method__makes_a_class_known_by_its_name() -> None:
    with pytest.raises(PlanError, match="`bias` is not a method"):
        method_from_dict({"method": "bias"})
    vp.register_method(Bias)
    vp.register_method(Bias)
    assert list(known_methods()) == [*METHODS, "bias"]
    assert method_from_dict({"method": "bias", "factor": 2.0}) == Bias(2.0)
    plan = vp.Plan({"0": Bias(0.5)})
    assert vp.Plan.from_dict(plan.to_dict()) == plan


def test_adapter_file__needs_its_methods_registered(registered: dict[str, Any], tmp_path: Path) -> None:
    base = nn.Sequential(nn.Linear(3, 4))
    model = nn.Sequential(nn.Linear(3, 4))
    model.load_state_dict(base.state_dict())
    vp.register_method(Bias)
    vp.inject(model, vp.Plan({"0": Bias(2.0)}))
    nn.init.ones_(next(parameter for parameter in model.parameters() if parameter.requires_grad))
    vp.save_adapter(model, tmp_path / "a.safetensors")
    registered.clear()
    with pytest.raises(
        CheckpointError, match=r"a\.safetensors.*not registered: `0`: `bias`.*`vispeft\.register_method`"
    ):
        vp.load_adapter(base, tmp_path / "a.safetensors")
    vp.register_method(Bias)
    vp.load_adapter(base, tmp_path / "a.safetensors")
    x = torch.ones(2, 3)
    assert torch.equal(base(x), model(x))
    assert describe(tmp_path / "a.safetensors").plan == vp.Plan({"0": Bias(2.0)})


class Thawed(Bias):
    pass


@dataclass(frozen=True)
class Lora(Bias):
    name: ClassVar[str] = "lora"


@dataclass(frozen=True)
class Nameless(vp.Method):
    def for_module(self, module: nn.Module, context: vp.Context) -> None:
        return None

    def for_parameter(self, parameter: Tensor, context: vp.Context) -> None:
        return None


@dataclass(frozen=True)
class Abstract(vp.Method):
    name: ClassVar[str] = "abstract"


@dataclass(frozen=True)
class Numbered(Bias):
    name: ClassVar[str] = "bias_2"


@dataclass(frozen=True)
class Full(Bias):
    name: ClassVar[str] = "full"


@dataclass(frozen=True)
class Confusing(Bias):
    name: ClassVar[str] = "confusing"
    method: str = "lora"


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Lora, r"the name `lora` belongs to `vispeft\.peft\.methods\.lora\.LoRA`"),
        (Thawed, "`Thawed` must be a frozen dataclass"),
        (Nameless, r"`Nameless\.name` must be a word .* is None"),
        (Numbered, r"`Numbered\.name` must be a word .* is 'bias_2'"),
        (Full, r"`Full\.name` must be a word .* is 'full'"),
        (Abstract, "`Abstract` must define `for_module`, `for_parameter`"),
        (Confusing, "must not have an option `method`"),
        (Bias(), r"Only a subclass of `vispeft\.Method`"),
        (nn.Linear, r"Only a subclass of `vispeft\.Method`"),
    ],
)
def test_register_method__refuses(kind: Any, message: str, registered: dict[str, Any]) -> None:
    with pytest.raises(PlanError, match=message):
        vp.register_method(kind)
    assert not registered


def test_register_method__refuses_the_name_of_another_registered_class() -> None:
    vp.register_method(Bias)
    other = dataclass(frozen=True)(type("Other", (Bias,), {"__doc__": "Another."}))
    with pytest.raises(PlanError, match=r"`Other` cannot be registered: the name `bias` belongs to .*Bias`"):
        vp.register_method(other)
