"""Random number generators: seeding, saving and restoring their state."""

from __future__ import annotations

import contextlib
import random
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from vispeft.training.arithmetic import MODE, MODE_VARIABLE, is_reproducible


def seed_everything(seed: int, *, rank: int = 0) -> None:
    """Seed the generators of Python, numpy and torch, on every device. rank: of the process; each draws differently."""
    seed = (seed + rank) % 2**32
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@contextlib.contextmanager
def repeatable(device: torch.device) -> Iterator[None]:
    """Use torch's deterministic operations in the `with` block, so that runs on a CPU repeat to the bit.

    No effect on GPUs, where several operations have no deterministic form or one of several times the cost. Warns if
    the processor's arithmetic prevents equal bits; `vispeft.training.arithmetic` tells how to avoid that.
    """
    if device.type != "cpu":
        yield
        return
    if not is_reproducible():
        warnings.warn(
            "On this processor MKL's products depend on where matrices lie in memory, so a run may not repeat to the "
            f"bit. Set the environment variable {MODE_VARIABLE}={MODE} before Python starts.",
            stacklevel=3,
        )
    was_deterministic = torch.are_deterministic_algorithms_enabled()
    was_warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    was_filling = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True, warn_only=True)
    # filling every new tensor with NaN costs time in each step
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was_deterministic, warn_only=was_warn_only)
        torch.utils.deterministic.fill_uninitialized_memory = was_filling  # type: ignore[attr-defined]


def rng_state(device: torch.device) -> dict[str, Any]:
    """Return the state of every generator that a run on `device` draws from, as tensors and plain values."""
    kind, key, position, has_gauss, cached = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": (kind, torch.tensor(np.asarray(key, dtype=np.int64)), int(position), int(has_gauss), float(cached)),
        "torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    if device.type == "mps":
        state["mps"] = torch.mps.get_rng_state()
    return state


def set_rng_state(state: dict[str, Any], device: torch.device) -> None:
    """Restore the generators' state, a result of `rng_state`. A device that the state lacks is left unchanged."""
    kind, key, position, has_gauss, cached = state["numpy"]
    random.setstate(state["python"])
    np.random.set_state((kind, key.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
    if device.type == "mps" and "mps" in state:
        torch.mps.set_rng_state(state["mps"])


@contextlib.contextmanager
def preserved_rng(device: torch.device) -> Iterator[None]:
    """Restore the random generators after the `with` block, so that evaluation or loaders do not change training."""
    state = rng_state(device)
    try:
        yield
    finally:
        set_rng_state(state, device)
