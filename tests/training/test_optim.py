from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from vispeft.errors import PlanError, TrainingError
from vispeft.peft import Adapter, Context, DoRA, LoRA, Plan, inject
from vispeft.training.optim import OptimSettings, Rates, build_optimizer, param_groups


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.level_embed = nn.Parameter(torch.zeros(3, 4))
        self.body = nn.Linear(4, 4).requires_grad_(False)
        self.body.lora = LoRA(rank=2).for_module(self.body, Context(()))
        self.last = nn.Linear(4, 4).requires_grad_(False)
        self.last.adapter = Adapter(width=2).for_module(self.last, Context(()))
        self.norm = nn.LayerNorm((2, 4))
        self.label_embed = nn.Embedding(3, 4)
        self.head = nn.Linear(4, 4)


def test_param_groups__gives_each_method_its_own_rates() -> None:
    settings = OptimSettings(
        lr=1e-3, weight_decay=0.05, methods={"lora": Rates(lr=0.1), "full": Rates(lr=0.01, weight_decay=0.2)}
    )
    groups = {group["name"]: group for group in param_groups(Block(), settings)}
    rates = {name: (group["lr"], group["weight_decay"]) for name, group in groups.items()}
    assert rates == {
        "full/no_decay": (0.01, 0.0),
        "lora": (0.1, 0.05),
        "adapter": (1e-3, 0.05),
        "adapter/no_decay": (1e-3, 0.0),
        "full": (0.01, 0.2),
    }
    assert all(group["initial_lr"] == group["lr"] for group in groups.values())


def test_param_groups__no_decay_for_biases_norms_embeddings_and_tokens() -> None:
    model = Block()
    names = {parameter: name for name, parameter in model.named_parameters()}
    no_decay = {
        names[parameter]
        for group in param_groups(model, OptimSettings())
        if group["weight_decay"] == 0
        for parameter in group["params"]
    }
    biases = {name for name in names.values() if name in ("last.adapter.0.down_b", "last.adapter.0.up_b")}
    assert len(biases) == 2
    assert no_decay == {"level_embed", "norm.weight", "norm.bias", "label_embed.weight", "head.bias"} | biases


def test_param_groups__holds_every_trainable_parameter_once_and_no_frozen_one() -> None:
    model = Block()
    groups = param_groups(model, OptimSettings())
    held = [parameter for group in groups for parameter in group["params"]]
    assert len(held) == len(set(held))
    assert set(held) == {p for p in model.parameters() if p.requires_grad}


def test_build_optimizer__refuses_a_model_without_trainable_parameters() -> None:
    with pytest.raises(TrainingError, match="must have trainable parameters, but all are frozen"):
        build_optimizer(nn.Linear(2, 2).requires_grad_(False), OptimSettings())


def test_param_groups__a_region_scales_the_rates_of_the_methods_in_it() -> None:
    settings = OptimSettings(
        lr=1e-3,
        weight_decay=0.05,
        methods={"lora": Rates(lr=0.1)},
        regions={"body | head": Rates(lr_scale=10.0, start=0.25), "head": Rates(lr=0.5, weight_decay=0.0)},
    )
    block = Block()
    groups = {group["name"]: group for group in param_groups(block, settings)}
    rates = {name: (group["lr"], group["weight_decay"]) for name, group in groups.items()}
    assert rates["lora in body | head"] == (1.0, 0.05)
    # the last pattern that names the head counts
    assert rates["full in head"] == (0.5, 0.0)
    assert {name: group["start"] for name, group in groups.items() if group["start"]} == {"lora in body | head": 0.25}
    assert rates["adapter"] == (1e-3, 0.05)
    assert block.head.weight in set(groups["full in head"]["params"])
    assert sum(len(group["params"]) for group in groups.values()) == sum(
        parameter.requires_grad for parameter in block.parameters()
    )


def test_param_groups__lora_plus_raises_the_rate_of_b_over_that_of_a() -> None:
    block = Block()
    settings = OptimSettings(
        lr=1e-3, methods={"lora": Rates(lr=0.1)}, regions={"last": Rates(lr_scale=10.0)}, lora_plus_ratio=16.0
    )
    groups = {group["name"]: group for group in param_groups(block, settings)}
    assert groups["lora"]["params"] == [block.body.lora.a]
    assert groups["lora/lora_plus"]["params"] == [block.body.lora.b]
    assert groups["lora/lora_plus"]["lr"] == groups["lora/lora_plus"]["initial_lr"] == pytest.approx(1.6)
    assert {name: group["lr"] for name, group in groups.items() if not name.startswith("lora")} == {
        "full/no_decay": 1e-3,
        "adapter in last": 1e-2,
        "adapter in last/no_decay": 1e-2,
        "full": 1e-3,
    }
    plain = OptimSettings(lr=1e-3, methods={"lora": Rates(lr=0.1)})
    assert [group["name"] for group in param_groups(block, plain)][1] == "lora"


def test_param_groups__lora_plus_reaches_the_b_of_parameters_too() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    inject(model, Plan({"0.weight": DoRA(2)}))
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = {group["name"]: group for group in param_groups(model, OptimSettings(lora_plus_ratio=4.0))}
    assert [names[one] for one in groups["dora/lora_plus"]["params"]] == ["0.parametrizations.weight.0.dora.b"]


def test_param_groups__lora_plus_needs_a_low_rank_update() -> None:
    with pytest.raises(TrainingError, match=r"`lora_plus_ratio` is 2\.0, but no delta has a B that starts at zero"):
        param_groups(nn.Linear(2, 2), OptimSettings(lora_plus_ratio=2.0))


def test_param_groups__regions_accept_roles_and_refuse_patterns_without_a_match() -> None:
    settings = OptimSettings(lr=1e-3, regions={"@class_head": Rates(lr_scale=10.0)})
    groups = {group["name"]: group for group in param_groups(Block(), settings, {"class_head": "head | label_embed"})}
    assert groups["full in @class_head"]["lr"] == pytest.approx(1e-2)
    assert groups["full in @class_head/no_decay"]["lr"] == pytest.approx(1e-2)
    assert groups["full/no_decay"]["lr"] == pytest.approx(1e-3)
    with pytest.raises(PlanError, match=r"`haed` matches no module or parameter .* `head`"):
        param_groups(Block(), OptimSettings(regions={"haed": Rates(lr=1.0)}))


def test_param_groups__a_region_names_a_parameter_with_a_delta_as_the_base_does() -> None:
    model = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True)
    inject(model, Plan({"self_attn.in_proj_weight": LoRA(2), "linear1": LoRA(2)}))
    settings = OptimSettings(lr=1e-3, regions={"@qkv": Rates(lr_scale=0.1)})
    groups = {group["name"]: group for group in param_groups(model, settings, {"qkv": "self_attn.in_proj_weight"})}
    delta = [part for name, part in model.named_parameters() if ".in_proj_weight.0.lora." in name]
    assert [id(part) for part in groups["lora in @qkv"]["params"]] == [id(part) for part in delta]
    assert groups["lora in @qkv"]["lr"] == pytest.approx(1e-4)


@pytest.mark.parametrize("backbone", ["swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256"])
def test_param_groups__the_position_biases_of_swin_do_not_decay(backbone: str) -> None:
    options = {"embed_dim": 24, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1)}
    model = timm.create_model(backbone, features_only=True, **options)
    no_decay = {
        parameter
        for group in param_groups(model, OptimSettings())
        for parameter in group["params"]
        if group["weight_decay"] == 0
    }
    names = {name for name, parameter in model.named_parameters() if parameter.ndim > 1 and parameter in no_decay}
    expected = ("relative_position_bias_table", "logit_scale", "cpb_mlp")
    assert names == {name for name, _ in model.named_parameters() if any(part in name for part in expected)} - {
        name for name, parameter in model.named_parameters() if parameter.ndim <= 1
    }
    assert names
