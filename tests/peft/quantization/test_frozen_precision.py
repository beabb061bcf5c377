"""The precision of a model's frozen weights."""

import torch
from torch import nn

from vispeft.peft.quantization.frozen_precision import set_frozen_precision


def test_set_frozen_precision__leaves_a_weight_that_is_an_embedding_too() -> None:
    model = nn.ModuleDict({"out": nn.Linear(4, 6, bias=False), "embed": nn.Embedding(6, 4), "plain": nn.Linear(4, 6)})
    model["out"].weight = model["embed"].weight
    set_frozen_precision(model, "bf16", trained=[])
    assert model["out"].weight is model["embed"].weight
    assert (model["embed"].weight.dtype, model["plain"].weight.dtype) == (torch.float32, torch.bfloat16)
