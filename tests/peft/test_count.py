"""Counting."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from vispeft.peft import Adapter, Context, Delta, LoRA, Method, Plan, count, inject


def test_count__tells_deltas_full_and_frozen_apart(build) -> None:
    model = build()
    total = sum(parameter.numel() for parameter in model.parameters())
    inject(
        model, Plan({"blocks.*.attn.qkv": LoRA(2, parts="qv"), "blocks.0.mlp.fc2": Adapter(width=3, count=2)}, ["head"])
    )
    found = count(model)
    lora, adapter = 2 * 2 * (2 * 8 + 8 * 2), 2 * (8 * 3 + 3 + 3 * 8 + 8)
    assert found.deltas == {"lora": lora, "adapter": adapter}
    assert (found.full, found.frozen) == (36, total - 36)
    assert found.trainable == lora + adapter + 36
    assert str(found) == (
        f"trainable {found.trainable} ({found.percent:.2f} %) = deltas {lora + adapter} (lora {lora}, "
        f"adapter {adapter}) + trained in full 36; frozen {total - 36:,}"
    )


def test_count__the_studys_adapter_has_its_published_size() -> None:
    model = nn.ModuleDict({"proj": nn.Linear(256, 256)})
    inject(model, Plan({"proj": Adapter(reduction=4, activation="relu")}))
    assert count(model).deltas == {"adapter": 33_088}


def test_count__an_adapter_count_of_zero_attaches_nothing(build) -> None:
    model = build()
    inject(model, Plan({"blocks.*.mlp": Adapter(width=3, count=0)}))
    assert count(model).trainable == 0


def test_count__what_two_deltas_share_counts_once() -> None:
    pool = nn.Linear(4, 4)

    @dataclass(frozen=True)
    class Shared(Method):
        name: ClassVar[str] = "shared"

        def for_module(self, module: nn.Module, context: Context) -> Delta:
            return SharedDelta(self)

        def for_parameter(self, parameter: Tensor, context: Context) -> None:
            return None

    class SharedDelta(Delta):
        def __init__(self, method: Method) -> None:
            super().__init__(method)
            self.pool = pool

        def forward(self, x: Tensor, y: Tensor, base: nn.Module | None) -> Tensor:
            return y + 0 * self.pool(x)

        def merged(self, weight: Tensor, bias: Tensor | None) -> None:
            return None

    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    inject(model, Plan({"*": Shared()}))
    assert count(model).deltas == {"shared": 20}
