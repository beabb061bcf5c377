from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from vispeft.training.seeds import preserved_rng, repeatable, rng_state, seed_everything, set_rng_state

CPU = torch.device("cpu")


def draws() -> list[float]:
    return [random.random(), float(np.random.rand()), float(np.random.randn()), float(torch.rand(()))]


def test_seed_everything__repeats_and_differs_by_rank() -> None:
    seed_everything(5)
    first = draws()
    seed_everything(5)
    assert draws() == first
    seed_everything(5, rank=1)
    assert not set(draws()) & set(first)


def test_set_rng_state__continues_from_the_saved_state() -> None:
    seed_everything(5)
    draws()
    state = rng_state(CPU)
    first = draws()
    draws()
    set_rng_state(state, CPU)
    assert draws() == first


def test_preserved_rng__restores_the_state_even_after_an_error() -> None:
    seed_everything(5)
    first = draws()
    seed_everything(5)
    with pytest.raises(ZeroDivisionError), preserved_rng(CPU):
        sum(draws()) / 0
    assert draws() == first


def test_repeatable__is_deterministic_inside_and_restores_the_setting() -> None:
    assert not torch.are_deterministic_algorithms_enabled()
    with repeatable(CPU):
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.empty(4).isnan().all()
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory
