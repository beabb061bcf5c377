"""Exponential moving average of the trained parameters."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn


class Ema:
    """Averages of the trainable parameters of a model. Frozen parameters and buffers are not copied.

    The decay grows with the number of updates n, `min(decay, (1 + n) / (10 + n))`, so that the initial values do not
    dominate a short run.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.num_updates = 0
        self._parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._averages = {name: p.detach().clone() for name, p in self._parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Update the averages by the current parameters."""
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        self.num_updates += 1
        averages = list(self._averages.values())
        torch._foreach_lerp_(averages, [p.detach() for p in self._parameters.values()], 1 - decay)

    @contextlib.contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Set the trainable parameters to the averages in the `with` block, and restore them to the bit after it."""
        kept = {name: p.detach().clone() for name, p in self._parameters.items()}
        self._write(self._averages)
        try:
            yield
        finally:
            self._write(kept)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the averages by parameter name, and the number of updates."""
        return {**self._averages, "": torch.tensor(self.num_updates)}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore a result of `state_dict`."""
        self.num_updates = int(state[""])
        for name, average in self._averages.items():
            average.copy_(state[name])

    @torch.no_grad()
    def _write(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self._parameters.items():
            parameter.copy_(values[name])
