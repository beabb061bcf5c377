"""Parameters trained in full, as modules and biases that the peft library saves."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from vispeft.errors import PlanError
from vispeft.peft.inject import base_parameters
from vispeft.peft.interop.peft_library.contents import no_counterpart
from vispeft.peft.interop.peft_library.names import Tree, excluded

# the library refuses to save these, which have no forward pass
_LISTS = (nn.ModuleDict, nn.ModuleList, nn.ParameterDict, nn.ParameterList)


@dataclass
class InFull:
    """Modules and biases that the library has to train in full.

    modules: names of the modules that it saves whole
    biases: names of biases outside of these
    """

    modules: list[str] = field(default_factory=list)
    biases: list[str] = field(default_factory=list)


def in_full(tree: Tree, trained: Collection[str], targets: Collection[str], *, has_biases: bool) -> InFull:
    """Return the modules and biases that hold the trained parameters.

    trained: names of the parameters
    targets: names of the modules that have deltas
    has_biases: True for a kind of adapter that can train biases alone
    """
    found = InFull()
    ids = _trained_ids(tree, trained)
    for name, module in tree.modules.items():
        own = base_parameters(module)
        leaves = {leaf for leaf, parameter in own.items() if id(parameter) in ids}
        if not leaves:
            continue
        # inside a wrapped module, the library's names are others
        can_save = name and not _adapted(name, targets) and not _is_inside(name, targets)
        if has_biases and leaves == {"bias"} and (own.keys() != leaves or not can_save):
            found.biases.append(f"{name}.bias")
        elif can_save:
            found.modules.append(_saved_module(tree, name, targets))
        else:
            raise _refused(name, min(leaves))
    found.modules = _outermost(tree, found.modules)
    found.biases = [bias for bias in found.biases if not _is_inside(bias, found.modules)]
    return _with_namesakes(tree, found, targets)


def saved_tensors(found: InFull, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of the saved modules, by name in the base."""
    return {key: value for key, value in state.items() if _is_inside(key, found.modules)}


def _trained_ids(tree: Tree, trained: Collection[str]) -> set[int]:
    """Return the identities of the trained parameters, which may have further names."""
    ids = set()
    for name in trained:
        owner, _, leaf = name.rpartition(".")
        ids.add(id(base_parameters(tree.modules[owner])[leaf]))
    return ids


def _saved_module(tree: Tree, name: str, targets: Collection[str]) -> str:
    """Return the innermost module around a parameter's owner that the library can replace by a copy."""
    candidate = name
    while candidate and (isinstance(tree.modules[candidate], _LISTS) or _is_held(tree, candidate)):
        candidate = candidate.rpartition(".")[0]
    if not candidate or _adapted(candidate, targets):
        reason = tree.unreplaceable_reason(name) or "the library cannot save it"
        raise PlanError(f"`{name}` is trained in full, but {reason}. Save it with `save_adapter`.")
    return candidate


def _is_held(tree: Tree, name: str) -> bool:
    return tree.holder(name) is not None


def _adapted(name: str, targets: Collection[str]) -> bool:
    """Return True for a module that has a delta, at itself or inside."""
    return any(target == name or target.startswith(f"{name}.") for target in targets)


def _is_inside(name: str, modules: Collection[str]) -> bool:
    return any(name.startswith(f"{module}.") for module in modules)


def _outermost(tree: Tree, names: Collection[str]) -> list[str]:
    """Return the names without those inside others and those of a place that another name has too."""
    found: dict[tuple[int, str], str] = {}
    for name in sorted(set(names), key=lambda name: (name.count("."), name)):
        if not _is_inside(name, found.values()):
            found.setdefault(tree.place(name), name)
    return sorted(found.values())


def _with_namesakes(tree: Tree, found: InFull, targets: Collection[str]) -> InFull:
    """Return the modules with all others that the library saves too, since it goes by the ends of names alone."""
    places = {tree.place(name) for name in found.modules}
    hit = [name for name in tree.modules if name and any(name.endswith(end) for end in found.modules)]
    others = [name for name in hit if name not in found.modules and tree.place(name) not in places]
    for name in others:
        is_nested = _is_inside(name, found.modules) or any(_is_inside(each, [name]) for each in found.modules)
        is_adapted = _adapted(name, targets) or _is_inside(name, targets)
        if is_nested or is_adapted or isinstance(tree.modules[name], _LISTS):
            end = next(end for end in found.modules if name.endswith(end))
            raise PlanError(
                f"The peft library would also train `{name}`, whose name ends in `{end}`. Save it with `save_adapter`."
            )
    if (left_out := excluded(targets, found.modules)) is not None:
        raise PlanError(
            f"The peft library leaves out `{left_out}`, since a part of its name is that of a module trained in full. "
            "Save it with `save_adapter`."
        )
    return InFull(sorted({*found.modules, *others}), found.biases)


def _refused(name: str, leaf: str) -> PlanError:
    """Return the error for a parameter that the library cannot train."""
    if not name:
        return no_counterpart(f"`{leaf}`, a parameter of the model itself")
    return no_counterpart(f"`{name}.{leaf}` in full, since `{name}` has a delta, at itself, inside or around it")
