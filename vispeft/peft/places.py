"""Parameters and buffers of a model by their names in the base, also where deltas stand before them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.utils import parametrize

from vispeft.peft.methods.base import Delta, WeightDelta
from vispeft.peft.quantization.kinds import kind_of


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


def full_names(model: nn.Module, trained: Iterable[str]) -> list[str]:
    """Return the names of parameters trained in full, and of the buffers that training may change with them."""
    trained = list(trained)
    return list(dict.fromkeys([*trained, *buffers_beside(model, trained), *buffers_inside(model, trained)]))


def buffers_beside(model: nn.Module, trained: Iterable[str]) -> list[str]:
    """Return the names of the buffers in the state dict whose modules have trained parameters of their own.

    The codes of a quantised map whose bias is trained do not change.
    """
    owners = dict.fromkeys(name.rpartition(".")[0] for name in trained)
    return [name for owner in owners for name in _buffers(model.get_submodule(owner), owner)]


def buffers_inside(model: nn.Module, trained: Iterable[str]) -> list[str]:
    """Return the names of the buffers in the state dict whose modules are trained as a whole.

    These are modules all of whose parameters are trained, those inside them included, and modules without parameters
    inside such a module.
    """
    holders = [place_of(model, name).holder for name in trained]
    parameters = {getattr(module, leaf) for module, leaf in holders}
    sites: dict[nn.Module, str] = {}
    for site, module in _whole(model, "", parameters, parent_is=False):
        # of a shared module the first name
        sites.setdefault(module, site)
    return [name for module, site in sites.items() for name in _buffers(module, site)]


def _whole(
    module: nn.Module, site: str, trained: set[nn.Parameter], *, parent_is: bool
) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules that are trained as a whole, with their names."""
    own = list(_base_parameters(module))
    is_whole = all(parameter in trained for parameter in own) if own else parent_is
    if is_whole:
        yield site, module
    for name, child in module.named_children():
        if not isinstance(child, Delta | WeightDelta):
            yield from _whole(child, f"{site}.{name}" if site else name, trained, parent_is=is_whole)


def _base_parameters(module: nn.Module) -> Iterator[nn.Parameter]:
    """Yield the parameters of a module and of those inside it, but for deltas."""
    if not isinstance(module, Delta | WeightDelta):
        yield from module.parameters(recurse=False)
        for child in module.children():
            yield from _base_parameters(child)


def _buffers(module: nn.Module, site: str) -> Iterator[str]:
    if kind_of(module) is None:
        for name, _ in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set:
                yield f"{site}.{name}" if site else name
