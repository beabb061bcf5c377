"""Gradient exchange fitted to what a run trains."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vispeft.config import parse_config
from vispeft.engine.attach import attach
from vispeft.engine.build import build_base, complete
from vispeft.engine.exchange import fit_exchange
from vispeft.engine.loaders import read_sets
from vispeft.engine.settings import criterion_of, fabric_of
from vispeft.training.distributed import GradientExchange


@pytest.mark.parametrize("trained", [["@heads"], ["**"]], ids=["heads", "all"])
def test_fit_exchange__finds_that_every_parameter_gets_a_gradient(tiny: dict[str, Any], trained: list[str]) -> None:
    config = parse_config(tiny)
    config = config.model_copy(update={"peft": config.peft.model_copy(update={"train": tuple(trained)})})
    sets = read_sets(config)
    config = complete(config, len(sets.train))
    model = build_base(config, len(sets.train.categories))
    attach(model, config)
    alone = fabric_of(config.train)
    exchange = GradientExchange()
    fabric = SimpleNamespace(strategy=exchange, device=torch.device("cpu"), autocast=alone.autocast)
    fit_exchange(config, fabric, sets.train, model, criterion_of(config, model))  # type: ignore[arg-type]
    assert exchange.use is not None
    assert not exchange.use.lacking
    assert not exchange.use.varies
    assert exchange.broadcasts_buffers is False
    # one process exchanges nothing
    fit_exchange(config, alone, sets.train, model, criterion_of(config, model))
