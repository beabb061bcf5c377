"""Deltas and parameters trained in full, written as an adapter directory of the peft library."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vispeft.errors import CheckpointError, PlanError
from vispeft.io.json_files import write_json
from vispeft.io.tensors import own_copies, write_tensors
from vispeft.peft.checkpoint import resolved_plan, state_tensors
from vispeft.peft.inject import Attached, attached, base_parameters
from vispeft.peft.interop.peft_library.contents import TheirContents, check_values, no_counterpart
from vispeft.peft.interop.peft_library.directory import CONFIG_FILE, PREFIX, TENSOR_FILE
from vispeft.peft.interop.peft_library.full_writing import InFull, in_full, saved_tensors
from vispeft.peft.interop.peft_library.lora_reading import OUT_PROJ
from vispeft.peft.interop.peft_library.lora_writing import write_lora
from vispeft.peft.interop.peft_library.names import Tree, exact_targets, is_targeted, with_wrappers
from vispeft.peft.interop.peft_library.product_writing import write_adalora, write_loha, write_lokr
from vispeft.peft.interop.peft_library.rotations import write_oft
from vispeft.peft.interop.peft_library.vector_writing import write_fourierft, write_ia3, write_vera
from vispeft.peft.wrappers import unwrapped

_WRITERS: dict[str, Callable[[Sequence[Attached], Tree], TheirContents]] = {
    "adalora": write_adalora,
    "dora": write_lora,
    "fourierft": write_fourierft,
    "ia3": write_ia3,
    "loha": write_loha,
    "lokr": write_lokr,
    "lora": write_lora,
    "oft": write_oft,
    "vera": write_vera,
}
# what the library takes for no target at all, beside modules trained in full
_NO_TARGETS = "dummy-target-modules"

_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)


def save_peft(model: nn.Module, directory: str | os.PathLike[str]) -> None:
    """Write the model's deltas and what it trained in full as a directory that the peft library reads.

    Its deltas must be of one kind. Parts of a fused projection become one pair of factors with zeros between the parts,
    and several LoRAs at a site become one, so that the library computes the same. PlanError names what has no
    counterpart.
    """
    model, target = unwrapped(model), Path(directory)
    trained = resolved_plan(model).train
    tree, state, items = Tree(model), state_tensors(model), attached(model)
    check_values(state)
    contents = _contents(items, tree)
    depths = _depths(contents)
    for name in depths:
        if (reason := tree.unreplaceable_reason(name)) is not None:
            raise PlanError(f"The peft library cannot adapt `{name}`: {reason}. Save it with `save_adapter`.")
    full = in_full(tree, trained, depths, has_biases=contents.bias is not None)
    norms = _norms(full, tree) if not items else []
    if norms:
        contents = TheirContents({"peft_type": "LN_TUNING"})
    elif not items and not full.modules and not full.biases:
        raise no_counterpart("a plan that trains nothing")
    tensors = _adapter_tensors(contents, depths) | contents.shared
    for key, value in saved_tensors(full, state).items():
        owner, _, leaf = key.rpartition(".")
        tensors[f"{PREFIX}{owner}.ln_tuning_layers.{leaf}" if owner in norms else PREFIX + key] = value
    for name in full.biases:
        tensors[PREFIX + _bias_name(name, tree, depths)] = state[name]
    config = _config(contents, full, norms, tree)
    write_tensors(target / TENSOR_FILE, own_copies(dict(sorted(tensors.items()))), {"format": "pt"})
    write_json(target / CONFIG_FILE, dict(sorted(config.items())), raises=CheckpointError, indent=2)


def _norms(full: InFull, tree: Tree) -> list[str]:
    """Return the modules trained in full where they are what the library's tuning of norms trains; none otherwise."""
    is_norms = all(_is_replaceable_norm(name, tree) for name in full.modules)
    return full.modules if is_norms and not full.biases else []


def _is_replaceable_norm(name: str, tree: Tree) -> bool:
    return isinstance(tree.modules[name], _NORMS) and tree.unreplaceable_reason(name) is None


def _contents(items: Sequence[Attached], tree: Tree) -> TheirContents:
    """Return the deltas in the library's form."""
    if not items:
        return TheirContents({"peft_type": "LORA"}, bias="lora_only")
    names: dict[str, Attached] = {}
    for item in items:
        names.setdefault(item.delta.method.name, item)
    for name, item in names.items():
        if name not in _WRITERS:
            raise no_counterpart(f"`{item.key}`")
    if len(kinds := {_WRITERS[name] for name in names}) > 1:
        first, second = list(names.values())[:2]
        raise no_counterpart(f"different methods in one adapter, such as `{first.key}` and `{second.key}`")
    return kinds.pop()(items, tree)


def _depths(contents: TheirContents) -> dict[str, int]:
    """Return the number of wrappers around each module that the library replaces."""
    depths = {name: len(leaves) for name, leaves in contents.parameters.items()}
    for site in contents.tensors:
        if ":" not in site and not site.endswith(OUT_PROJ):
            depths[site] = 1
    return depths


def _adapter_tensors(contents: TheirContents, depths: Mapping[str, int]) -> dict[str, Tensor]:
    """Return the tensors of the deltas by their names in the file."""
    tensors: dict[str, Tensor] = {}
    for site, parts in contents.tensors.items():
        owner, _, leaf = site.partition(":")
        theirs = with_wrappers(owner, depths) if not owner.endswith(OUT_PROJ) else owner
        if leaf:
            # of several parameters of a module, the first has the innermost wrapper
            leaves = contents.parameters[owner]
            theirs += ".base_layer" * (len(leaves) - 1 - leaves.index(leaf))
        tensors |= {f"{PREFIX}{theirs}.{part}": value for part, value in parts.items()}
    return tensors


def _bias_name(name: str, tree: Tree, depths: Mapping[str, int]) -> str:
    """Return the library's name of a bias; the output projection of an adapted attention has a wrapper of its own."""
    owner = name.removesuffix(".bias")
    attention = owner.removesuffix(".out_proj")
    if attention in depths and isinstance(tree.modules[attention], nn.MultiheadAttention):
        return f"{with_wrappers(attention, depths)}{OUT_PROJ}.base_layer.bias"
    return with_wrappers(name, depths)


def _config(contents: TheirContents, full: InFull, norms: Collection[str], tree: Tree) -> dict[str, Any]:
    """Return the configuration, as JSON has it."""
    saved = [name for name in full.modules if name not in norms]
    modules = [name for name in _depths(contents) if name not in contents.parameters] or sorted(norms)
    parameters = sorted(f"{owner}.{leaf}" for owner, leaves in contents.parameters.items() for leaf in leaves)
    _check_parameters(parameters, tree)
    targets = exact_targets(modules, [name for name in tree.modules if name]) if modules else []
    if not modules and not parameters:
        targets = _NO_TARGETS
    elif {name for name in tree.modules if name and is_targeted(name, targets)} != set(modules):
        raise no_counterpart("the names of these sites, which its patterns do not tell from others")
    config: dict[str, Any] = {
        "base_model_name_or_path": None,
        "inference_mode": True,
        "modules_to_save": saved or None,
        "target_modules": targets,
        "task_type": None,
        **contents.options,
    }
    if parameters:
        config["target_parameters"] = parameters
    if contents.bias is not None:
        at_targets = all(name.removesuffix(".bias") in modules for name in full.biases)
        config["bias"] = "none" if not full.biases else contents.bias if at_targets else "all"
    return config


def _check_parameters(wanted: Sequence[str], tree: Tree) -> None:
    """Refuse parameters whose names are the ends of others, which the library would adapt too."""
    names = [f"{prefix}.{leaf}" for prefix, module in tree.modules.items() for leaf in base_parameters(module)]
    for name in names:
        end = next((each for each in wanted if name != each and name.endswith(f".{each}")), None)
        if end is not None and name not in wanted:
            raise no_counterpart(f"`{end}` alone, since `{name}` ends in its name")
