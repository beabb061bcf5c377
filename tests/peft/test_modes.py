"""What is in train mode."""

from vispeft.peft import Adapter, LoRA, Plan, inject, train_mode


def training(model) -> set[str]:
    return {name for name, module in model.named_modules() if module.training}


def test_train_mode__frozen_parts_rest_and_deltas_train(build) -> None:
    model = build()
    inject(model, Plan({"blocks.0.attn.proj": Adapter(width=2), "self_attn.in_proj_weight": LoRA(2)}, ["head"]))
    model.train()
    train_mode(model)
    assert training(model) == {
        "",
        "head",
        "blocks.0.attn.proj.adapter",
        "blocks.0.attn.proj.adapter.0",
        "self_attn.parametrizations.in_proj_weight.0.lora",
    }


def test_train_mode__a_part_trained_in_full_trains_with_its_dropout(build) -> None:
    model = build()
    inject(model, Plan.last_blocks(1))
    train_mode(model)
    assert {"blocks.1", "blocks.1.attn", "blocks.1.attn.drop", "blocks.1.mlp.act"} <= training(model)
    assert not any(name.startswith("blocks.0") for name in training(model))


def test_train_mode__a_thawed_norm_trains_alone(build) -> None:
    model = build()
    inject(model, Plan(train=["bn", "blocks.0.norm1.bias"]))
    train_mode(model)
    assert training(model) == {"", "bn", "blocks.0.norm1"}


def test_train_mode__full_fine_tuning_is_ordinary_training(build) -> None:
    model = build()
    inject(model, Plan.full())
    train_mode(model)
    assert all(module.training for module in model.modules())
