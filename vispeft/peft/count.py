"""Parameter counts of a plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from vispeft.peft.inject import attached
from vispeft.peft.methods.mixture import SiteMixture, WeightMixture
from vispeft.peft.quantization.kinds import num_uncounted
from vispeft.peft.wrappers import unwrapped


@dataclass(frozen=True)
class Count:
    """Parameters of a model by what happens to them; shared ones count once.

    deltas: by method name
    full: trained in full
    frozen: everything else
    """

    deltas: Mapping[str, int]
    full: int
    frozen: int

    @property
    def trainable(self) -> int:
        """Parameters that an optimizer would change."""
        return sum(self.deltas.values()) + self.full

    @property
    def total(self) -> int:
        """All parameters, deltas included."""
        return self.trainable + self.frozen

    @property
    def percent(self) -> float:
        """The trainable part of all, in percent."""
        return 100 * self.trainable / self.total if self.total else 0.0

    def __str__(self) -> str:
        methods = ", ".join(f"{name} {number:,}" for name, number in self.deltas.items())
        deltas = f"{sum(self.deltas.values()):,}" + (f" ({methods})" if methods else "")
        return (
            f"trainable {self.trainable:,} ({self.percent:.2f} %) = deltas {deltas} + trained in full {self.full:,}; "
            f"frozen {self.frozen:,}"
        )


def count(model: nn.Module) -> Count:
    """Count the parameters of a model, injected or not. Parameters that several modules share count once,
    and quantised weights as the values that their codes stand for.
    """
    deltas: dict[str, int] = {}
    seen: set[int] = set()
    for item in attached(model):
        # named adapters are frozen
        if isinstance(item.delta, SiteMixture | WeightMixture):
            continue
        own = {id(parameter): parameter.numel() for parameter in item.delta.parameters() if id(parameter) not in seen}
        deltas[item.delta.method.name] = deltas.get(item.delta.method.name, 0) + sum(own.values())
        seen |= own.keys()
    others = [parameter for parameter in unwrapped(model).parameters() if id(parameter) not in seen]
    full = sum(parameter.numel() for parameter in others if parameter.requires_grad)
    in_codes = sum(num_uncounted(module) for module in unwrapped(model).modules())
    return Count(deltas, full, sum(parameter.numel() for parameter in others) - full + in_codes)
