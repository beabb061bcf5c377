"""Sites of deltas: the modules and parameters of a model that a pattern of names stands for.

A pattern is dotted like a name. `*` is one component or a part of one (`norm*`), `**` any number of components, none
included. A range in brackets picks numbers among siblings, the way Python slices do: `blocks.[6:]`, `blocks.[-2:]`,
`blocks.[0]`, and after a stem too: `stages_[2:]`. `first | second` is both. `@role` stands for the pattern that a model
family gives to a role; `@role[6:]` is the same with the role's first lone `*` replaced by the range. `@norms` needs no
roles: it stands for the norms of any model, found by type.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn
from torch.nn import Parameter

from vispeft.errors import PlanError
from vispeft.io.names import did_you_mean, nearest_names
from vispeft.peft.norms import is_norm
from vispeft.peft.quantization.kinds import kind_of

Roles = Mapping[str, str]

# the role that every model has
NORMS = "norms"

_RANGE = re.compile(r"\[(-?\d*(?::-?\d*){0,2})\]")
# the module's name, and that of the parameter with what is below the one parametrization of ours
_PARAMETRIZED = re.compile(r"^((?:.+\.)?)parametrizations\.([^.]+)(?:\.original$|\.0(?=\.))")
_ROLE = re.compile(r"@(?P<name>[\w.]+)(?P<range>\[[^\]]*\])?")
_NUMBERED = re.compile(r"(?P<stem>.*?)(?P<number>\d+)")


_NO_WEIGHT = "Name the module, or leave it out of the quantisation (`skip` of `quantize`)."
_NOT_TRAINED = "Leave it out of the quantisation (`skip` of `quantize`), or name other parameters such as its `bias`."


@dataclass(frozen=True)
class Site:
    """One place in a model: a module, or a parameter and the module that owns it. A shared one has its first name."""

    name: str
    module: nn.Module
    parameter: str | None = None


@dataclass(frozen=True)
class _Component:
    """One dotted part of a pattern: `**`, or a glob whose trailing number may have to lie in a range."""

    glob: re.Pattern[str] | None
    numbers: slice | None = None


class Names:
    """Every name of a model's modules and parameters, shared ones under all of theirs."""

    def __init__(self, model: nn.Module) -> None:
        self.modules = {name: module for name, module in model.named_modules(remove_duplicate=False) if name}
        self.parameters = dict(model.named_parameters(remove_duplicate=False))
        self.quantized = [name for name, module in self.modules.items() if kind_of(module) is not None]
        self._owners = {"": model, **self.modules}
        self._module_names: dict[nn.Module, str] = {}
        for name, module in self.modules.items():
            self._module_names.setdefault(module, name)
        self._parameter_names: dict[Parameter, list[str]] = defaultdict(list)
        for name, parameter in self.parameters.items():
            self._parameter_names[parameter].append(name)
        self._norms = {name for name, module in self.modules.items() if is_norm(module)}
        self._positions = {name: place for place, name in enumerate([*self.modules, *self.parameters])}
        self._lengths = _lengths([*self.modules, *self.parameters])

    def sites(self, pattern: str, roles: Roles | None = None) -> list[Site]:
        """Return the sites that `pattern` names, in the model's order: modules if it names any, else parameters."""
        found: dict[str, Site] = {}
        for alternative in expand(pattern, roles):
            matches = self._match(alternative)
            sites = [self._module_site(name) for name in self.modules if matches(name)]
            sites = sites or [self._parameter_site(name) for name in self.parameters if matches(name)]
            if not sites or sites[0].parameter == "weight":
                _refuse_quantized(pattern, [name for name in self.quantized if matches(f"{name}.weight")], _NO_WEIGHT)
            if not sites:
                raise PlanError(self._nothing(pattern, alternative))
            found.update((site.name, site) for site in sites)
        return list(found.values())

    def trained(self, pattern: str, roles: Roles | None = None) -> list[str]:
        """First names of the parameters that `pattern` names, or that belong to a module that it names."""
        found: dict[str, None] = {}
        for alternative in expand(pattern, roles):
            matches = self._match(alternative)
            # of a norm by type alone the parameters of its own, for what is inside it may be more than a norm
            parts = _parents if alternative == f"@{NORMS}" else _ancestry
            named = [
                name
                for name in self.parameters
                if any(matches(part) for known in {name, _base_name(name)} for part in parts(known))
            ]
            if not named:
                raise PlanError(self._nothing(pattern, alternative))
            found.update((self._parameter_names[self.parameters[name]][0], None) for name in named)
        return list(found)

    def refuse_quantized(self, pattern: str, roles: Roles | None = None) -> None:
        """Refuse a pattern of parameters to train that names a quantised map or its weight."""
        for alternative in expand(pattern, roles):
            matches = self._match(alternative)
            named = [name for name in self.quantized if any(matches(part) for part in _ancestry(f"{name}.weight"))]
            _refuse_quantized(pattern, named, _NOT_TRAINED)

    def position(self, site: Site) -> int:
        """Return the rank of a site in the model's order, modules first."""
        return self._positions[site.name]

    def _module_site(self, name: str) -> Site:
        module = self.modules[name]
        return Site(self._module_names[module], module)

    def _parameter_site(self, name: str) -> Site:
        names = self._parameter_names[self.parameters[name]]
        owners = {id(self._owners[_parent(each)]) for each in names}
        if len(owners) > 1:
            raise PlanError(
                f"`{name}` is one parameter shared by several modules ({', '.join(names)}), which the weight form "
                f"cannot serve. Name a module instead, or train the parameter in full."
            )
        owner, _, leaf = names[0].rpartition(".")
        return Site(names[0], self._owners[owner], leaf)

    def _match(self, pattern: str) -> Callable[[str], bool]:
        if pattern == f"@{NORMS}":
            return self._norms.__contains__
        components = tuple(_component(text, pattern) for text in pattern.split("."))
        return lambda name: _matches(components, name.split("."), 0, 0, self._lengths)

    def _nothing(self, pattern: str, alternative: str) -> str:
        shown = f"`{pattern}`" if pattern == alternative else f"`{pattern}` (that is `{alternative}`)"
        if alternative == f"@{NORMS}":
            return f"{shown} matches no module of this model: none of its norms has parameters."
        candidates = [*self.modules, *self.parameters]
        return f"{shown} matches no module or parameter of this model. {suggest_names(alternative, candidates)}"


def expand(pattern: str, roles: Roles | None = None) -> list[str]:
    """Return a pattern's alternatives with the roles put in."""
    alternatives: list[str] = []
    for text in pattern.split("|"):
        alternative = text.strip()
        if alternative == f"@{NORMS}" and NORMS not in (roles or {}):
            alternatives.append(alternative)
        elif alternative.startswith("@"):
            alternatives += expand(_role(alternative, roles), None)
        else:
            alternatives.append(alternative)
    return alternatives


def suggest_names(pattern: str, names: Iterable[str]) -> str:
    """Return the names nearest to a pattern, with block numbers folded into `*`."""
    folded = dict.fromkeys(re.sub(r"(?<![^.])\d+(?![^.])", "*", name) for name in names)
    plain = re.sub(r"\[[^\]]*\]", "*", pattern)
    close = nearest_names(plain, folded, at_most=3, cutoff=0.0)
    return f"The nearest names are {', '.join(f'`{name}`' for name in close)}." if close else "The model has none."


def _role(text: str, roles: Roles | None) -> str:
    """Return the pattern behind `@role` or `@role[6:]`."""
    matched = _ROLE.fullmatch(text)
    if matched is None:
        raise PlanError(f"`{text}` must be `@role` or `@role[range]` and nothing after it.")
    name, numbers = matched["name"], matched["range"]
    if roles is None:
        raise PlanError(f"`@{name}` is a role, but no roles were given. Pass `roles=`, or write the names themselves.")
    if name not in roles:
        known = {*roles, NORMS}
        raise PlanError(
            f"`@{name}` is not a role of this model.{did_you_mean(name, known)} It has {', '.join(sorted(known))}."
        )
    pattern = roles[name]
    if numbers is None:
        return pattern
    return " | ".join(_narrow(alternative.strip(), numbers, text) for alternative in pattern.split("|"))


def _narrow(pattern: str, numbers: str, text: str) -> str:
    """Return the pattern with its first lone `*` replaced by a range."""
    components = pattern.split(".")
    if "*" not in components:
        raise PlanError(f"`{text}` asks for a range, but the role's pattern `{pattern}` has no `*` to narrow.")
    components[components.index("*")] = numbers
    return ".".join(components)


def _component(text: str, pattern: str) -> _Component:
    """Reads one dotted part of a pattern."""
    if text == "**":
        return _Component(None)
    stem, bracket, _ = text.partition("[")
    matched = _RANGE.fullmatch(text[len(stem) :]) if bracket else None
    if not text or "**" in text or "]" in stem or (bracket and matched is None) or (matched and not matched[1]):
        raise PlanError(
            f"`{pattern}` is not a pattern: `{text}` must be a name, with `*` in it or not, `**` alone, or a range "
            f"such as `[6:]`."
        )
    glob = re.compile(".*".join(re.escape(piece) for piece in stem.split("*")))
    return _Component(glob, _slice(matched[1]) if matched else None)


def _slice(text: str) -> slice:
    """`6:` as slice(6, None), `-1` as the one last element."""
    bounds = [int(bound) if bound else None for bound in text.split(":")]
    if len(bounds) == 1:
        index = bounds[0]
        assert index is not None  # an empty range is refused before
        return slice(index, index + 1 if index != -1 else None)
    if len(bounds) == 3 and bounds[2] == 0:
        raise PlanError(f"`[{text}]` must have a step other than 0.")
    return slice(*bounds)


def _matches(
    components: tuple[_Component, ...], parts: list[str], c: int, p: int, lengths: Mapping[tuple[str, str], int]
) -> bool:
    """Tell whether components from `c` on match name parts from `p` on, all of them."""
    if c == len(components):
        return p == len(parts)
    component = components[c]
    if component.glob is None:
        return any(_matches(components, parts, c + 1, skip, lengths) for skip in range(p, len(parts) + 1))
    if p == len(parts) or not _fits(component, ".".join(parts[:p]), parts[p], lengths):
        return False
    return _matches(components, parts, c + 1, p + 1, lengths)


def _fits(component: _Component, parent: str, part: str, lengths: Mapping[tuple[str, str], int]) -> bool:
    """Tell whether one component matches one part of a name."""
    assert component.glob is not None
    if component.numbers is None:
        return component.glob.fullmatch(part) is not None
    numbered = _NUMBERED.fullmatch(part)
    if numbered is None or component.glob.fullmatch(numbered["stem"]) is None:
        return False
    return int(numbered["number"]) in range(lengths[parent, numbered["stem"]])[component.numbers]


def _lengths(names: Iterable[str]) -> dict[tuple[str, str], int]:
    """Return the number of numbered siblings by parent and stem: the highest number plus one."""
    lengths: dict[tuple[str, str], int] = {}
    for name in names:
        parent, _, part = name.rpartition(".")
        numbered = _NUMBERED.fullmatch(part)
        if numbered is not None:
            key = parent, numbered["stem"]
            lengths[key] = max(lengths.get(key, 0), int(numbered["number"]) + 1)
    return lengths


def _refuse_quantized(pattern: str, named: Sequence[str], remedy: str) -> None:
    """Refuse a pattern that names quantised maps."""
    if named:
        raise PlanError(f"`{pattern}` names the weight of `{named[0]}`, which is quantised. {remedy}")


def _base_name(name: str) -> str:
    """Return the name in the base of a parameter with a delta, `a.weight`, or of the delta's, `a.weight.lora.b`."""
    return _PARAMETRIZED.sub(r"\1\2", name)


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def _parents(name: str) -> list[str]:
    return [_parent(name)]


def _ancestry(name: str) -> list[str]:
    """Return a parameter's name and those of the modules around it: a.b.c, a.b, a."""
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(len(parts), 0, -1)]
