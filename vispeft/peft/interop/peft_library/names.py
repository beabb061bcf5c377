"""Rules by which the peft library finds modules by name, and modules at which it cannot do what it is told."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from torch import nn

from vispeft.peft.methods.base import Delta

_WRAPPER = ".base_layer"


def is_targeted(name: str, targets: str | Collection[str]) -> bool:
    """Return True for a module that `target_modules` names: by a pattern of the whole name, or by the name's end."""
    if isinstance(targets, str):
        return re.fullmatch(targets, name) is not None
    return name in targets or any(name.endswith(f".{target}") for target in targets)


def excluded(names: Iterable[str], to_save: Iterable[str]) -> str | None:
    """Return the first module that `modules_to_save` keeps from being a target: one that it names, or one inside."""
    patterns = [re.compile(rf"(^|.*\.){target}($|\..*)") for target in to_save]
    return next((name for name in names if any(pattern.match(name) for pattern in patterns)), None)


def exact_targets(names: Collection[str], others: Collection[str]) -> str | list[str]:
    """Return `target_modules` for these modules and for none of the others: names, or a pattern where names hit more.

    others: names of all modules
    """
    wanted = sorted(names)
    hit = {name for name in others if is_targeted(name, wanted)}
    return wanted if hit == set(wanted) else "|".join(re.escape(name) for name in wanted)


def without_wrappers(name: str) -> str:
    """Return a name in the base, without the wrappers that the library puts around its targets."""
    return name.replace(_WRAPPER, "")


def with_wrappers(name: str, depths: Mapping[str, int]) -> str:
    """Return a name of the base as it is inside the library's wrappers.

    depths: number of wrappers around a module, by name
    """
    parts = name.split(".")
    theirs = ""
    for end, part in enumerate(parts, 1):
        theirs += f".{part}" if theirs else part
        if end < len(parts):
            theirs += _WRAPPER * depths.get(".".join(parts[:end]), 0)
    return theirs


@dataclass(frozen=True)
class Tree:
    """Modules of a base by all of their names, without deltas of ours."""

    model: nn.Module

    @cached_property
    def modules(self) -> Mapping[str, nn.Module]:
        """Return the modules in the model's order."""
        return dict(_walk("", self.model))

    def places(self, module: nn.Module) -> set[tuple[int, str]]:
        """Return the parents of a module, with the name that it has there."""
        return {self.place(name) for name, other in self.modules.items() if other is module and name}

    def place(self, name: str) -> tuple[int, str]:
        """Return the parent of a module's name, with the last part of the name."""
        parent, _, leaf = name.rpartition(".")
        return id(self.modules[parent]), leaf

    @cached_property
    def _holders(self) -> Mapping[int, str]:
        """Return, by module, a module that holds it in a list or dict of its own, beside the tree."""
        found: dict[int, str] = {}
        ordinary = vars(nn.Module()).keys()
        for name, module in self.modules.items():
            for key, value in vars(module).items():
                if key not in ordinary:
                    found |= {id(held): name for held in _held(value)}
        return found

    def holder(self, name: str) -> str | None:
        """Return the name of the module that holds a module beside the tree, None where there is none."""
        return self._holders.get(id(self.modules[name]))

    def unreplaceable_reason(self, name: str) -> str | None:
        """Return why a wrapper that the library puts in place of a module would not run, as a clause."""
        module = self.modules[name]
        if (holder := self.holder(name)) is not None:
            owner = holder or type(self.model).__name__
            return (
                f"`{owner}` also holds it in an attribute outside its children, where the library does not replace it"
            )
        if len(self.places(module)) > 1:
            names = [other for other, each in self.modules.items() if each is module]
            return f"the model has it under several names ({', '.join(names)}), of which the library replaces one"
        return None


def _walk(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    yield name, module
    for key, child in module._modules.items():
        if child is not None and not isinstance(child, Delta) and key != "parametrizations":
            yield from _walk(f"{name}.{key}" if name else key, child)


def _held(value: object) -> Iterator[nn.Module]:
    """Yield the modules in an attribute: itself, or in a list, tuple, set or dict."""
    if isinstance(value, nn.Module):
        yield value
    elif isinstance(value, list | tuple | set):
        for each in value:
            yield from _held(each)
    elif isinstance(value, dict):
        yield from _held(list(value.values()))
