"""Parameters and buffers of a model by their names in the base, also where deltas stand before them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.utils import parametrize


@dataclass(frozen=True)
class Place:
    """A parameter or buffer of a module, under the name that it has in the base."""

    owner: nn.Module
    leaf: str

    @property
    def holder(self) -> tuple[nn.Module, str]:
        """The module that holds the frozen tensor, and its name there."""
        if parametrize.is_parametrized(self.owner, self.leaf):
            return self.owner.get_submodule(f"parametrizations.{self.leaf}"), "original"
        return self.owner, self.leaf

    @property
    def tensor(self) -> Tensor:
        """The frozen tensor itself, without a gradient."""
        owner, leaf = self.holder
        tensor: Tensor = getattr(owner, leaf)
        return tensor.detach()


def place_of(model: nn.Module, name: str) -> Place:
    """Return the place of a parameter or buffer."""
    owner, _, leaf = name.rpartition(".")
    return Place(model.get_submodule(owner), leaf)


class Aliases:
    """Names of each parameter of a plain model, of which a shared one has several."""

    def __init__(self, model: nn.Module) -> None:
        self._parameters = dict(model.named_parameters(remove_duplicate=False))
        self._names: dict[nn.Parameter, list[str]] = defaultdict(list)
        for name, parameter in self._parameters.items():
            self._names[parameter].append(name)

    def of(self, name: str) -> list[str]:
        """Return all names of a parameter by one of them; a buffer has its own alone."""
        return self._names[self._parameters[name]] if name in self._parameters else [name]


def full_names(model: nn.Module, trained: Iterable[str]) -> Iterator[str]:
    """Yield the names of parameters trained in full, and of the buffers beside them that the state dict holds."""
    trained = list(trained)
    yield from trained
    for owner in dict.fromkeys(name.rpartition(".")[0] for name in trained):
        module = model.get_submodule(owner)
        for name, _ in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set:
                yield f"{owner}.{name}" if owner else name
