"""Placement of roles: from the patterns of a family to those that name something in one of its models.

A family's pattern begins inside the family's own model; `*` in it is one component or a part of one, `**.` at its start
any number of components. `first | second` is both, and a tuple of patterns is the first that names something: models of
one family may differ in their parts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from torch import nn

Patterns = Mapping[str, str | tuple[str, ...]]


def family_roles(model: nn.Module, families: Mapping[str, Patterns]) -> dict[str, str]:
    """Return the roles of the outermost module that one of the families defines; none without such a module.

    families: Python module that defines the classes of a family -> pattern of each role
    """
    for name, module in model.named_modules():
        patterns = families.get(type(module).__module__)
        if patterns is None:
            continue
        # a container of blocks may be of another class, such as torchvision's feature extractors
        for root in (name, *_parents(name)):
            roles = placed_roles(patterns, module_and_parameter_names(model.get_submodule(root)))
            if roles:
                return prefixed(roles, root)
    return {}


def placed_roles(patterns: Patterns, names: Sequence[str]) -> dict[str, str]:
    """Return the roles that name something, with patterns that do so from the root of `names`."""
    placed = {role: placed_pattern(pattern, names) for role, pattern in patterns.items()}
    return {role: pattern for role, pattern in placed.items() if pattern}


def placed_pattern(pattern: str | tuple[str, ...], names: Sequence[str]) -> str:
    """Return the pattern behind the shortest prefix with which it names something; empty if there is none."""
    if isinstance(pattern, tuple):
        return next(filter(None, (placed_pattern(each, names) for each in pattern)), "")
    return " | ".join(filter(None, (_placed(each.strip(), names) for each in pattern.split("|"))))


def prefixed(roles: Mapping[str, str], prefix: str) -> dict[str, str]:
    """Return the roles of a model that is the part `prefix` of another."""
    if not prefix:
        return dict(roles)
    return {
        role: " | ".join(f"{prefix}.{each.strip()}" for each in pattern.split("|")) for role, pattern in roles.items()
    }


def module_and_parameter_names(model: nn.Module) -> list[str]:
    """Return the names of all modules, then those of all parameters."""
    modules = (name for name, _ in model.named_modules(remove_duplicate=False) if name)
    return [*modules, *(name for name, _ in model.named_parameters(remove_duplicate=False))]


def _parents(name: str) -> Iterable[str]:
    """Return the names of the modules around a module, the innermost first."""
    while name:
        name = name.rpartition(".")[0]
        yield name


def _placed(pattern: str, names: Sequence[str]) -> str:
    if pattern.startswith("**."):
        expression = re.compile(rf"(?:.+\.)?{_body(pattern[3:])}")
        return pattern if any(expression.fullmatch(name) for name in names) else ""
    expression = re.compile(rf"(?:(?P<prefix>.+)\.)?{_body(pattern)}")
    prefixes = [found["prefix"] or "" for name in names if (found := expression.fullmatch(name))]
    if not prefixes:
        return ""
    prefix = min(prefixes, key=lambda each: (each.count(".") + bool(each), each))
    return f"{prefix}.{pattern}" if prefix else pattern


def _body(pattern: str) -> str:
    """Return a regular expression for a pattern, in which `*` is one component or a part of one."""
    return "[^.]*".join(re.escape(piece) for piece in pattern.split("*"))
