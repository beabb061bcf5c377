"""Counting."""

from torch import nn

from vispeft.peft import Adapter, LoRA, Plan, count, inject


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
