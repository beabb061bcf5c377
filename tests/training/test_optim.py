from __future__ import annotations

import pytest
import torch
from torch import nn

from vispeft.errors import TrainingError
from vispeft.peft import Adapter, LoRA
from vispeft.training.optim import OptimSettings, Rates, build_optimizer, param_groups


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.level_embed = nn.Parameter(torch.zeros(3, 4))
        self.body = nn.Linear(4, 4).requires_grad_(False)
        self.body.lora = LoRA(rank=2).for_module(self.body)
        self.last = nn.Linear(4, 4).requires_grad_(False)
        self.last.adapter = Adapter(width=2).for_module(self.last)
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


def test_param_groups__spares_biases_norms_embeddings_and_tokens_from_decay() -> None:
    model = Block()
    names = {parameter: name for name, parameter in model.named_parameters()}
    spared = {
        names[parameter]
        for group in param_groups(model, OptimSettings())
        if group["weight_decay"] == 0
        for parameter in group["params"]
    }
    biases = {name for name in names.values() if name in ("last.adapter.0.down_b", "last.adapter.0.up_b")}
    assert len(biases) == 2
    assert spared == {"level_embed", "norm.weight", "norm.bias", "label_embed.weight", "head.bias"} | biases


def test_param_groups__holds_every_trainable_parameter_once_and_no_frozen_one() -> None:
    model = Block()
    groups = param_groups(model, OptimSettings())
    held = [parameter for group in groups for parameter in group["params"]]
    assert len(held) == len(set(held))
    assert set(held) == {p for p in model.parameters() if p.requires_grad}


def test_build_optimizer__refuses_a_model_without_trainable_parameters() -> None:
    with pytest.raises(TrainingError, match=r"Nothing is trainable.*`peft\.deltas`"):
        build_optimizer(nn.Linear(2, 2).requires_grad_(False), OptimSettings())
