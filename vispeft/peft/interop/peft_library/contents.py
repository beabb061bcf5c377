"""Content of an adapter directory in this package's terms and in the library's, and the sites of its tensors."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from vispeft.errors import CheckpointError, PlanError
from vispeft.peft.interop.peft_library.directory import Directory
from vispeft.peft.interop.peft_library.names import Tree, without_wrappers
from vispeft.peft.methods.base import Method


@dataclass
class Contents:
    """Adapter as this package has it.

    methods: by site
    tensors: of the deltas, by key of the model's state dict
    full: tensors trained in full and the buffers beside them, by name
    """

    methods: dict[str, Method] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    full: dict[str, Tensor] = field(default_factory=dict)

    def add(self, site: str, method: Method, tensors: Mapping[str, Tensor]) -> None:
        """Add a delta with its tensors, by their names in it."""
        self.methods[site] = method
        self.tensors |= {f"{site}.{method.name}.{name}": tensor for name, tensor in tensors.items()}


@dataclass
class TheirContents:
    """Adapter as the library has it.

    options: of the configuration, but for those that name modules
    tensors: of each wrapped module, by name of the module and of the tensor in it
    parameters: names of the parameters that `target_parameters` names, by module
    shared: tensors of no module, by name in the file
    bias: value of `bias` that stands for the biases of the targets; None for a kind without the option
    """

    options: dict[str, Any]  # of any type that JSON has
    tensors: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    parameters: dict[str, list[str]] = field(default_factory=dict)
    shared: dict[str, Tensor] = field(default_factory=dict)
    bias: str | None = None


def split(
    source: Directory, parts: Collection[str], prefix: str
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """Return the tensors of each site by their part, such as `lora_A.weight`, and those that belong to no site.

    prefix: of the names of all parts; a tensor with an unknown one is refused
    """
    sites: dict[str, dict[str, Tensor]] = {}
    others: dict[str, Tensor] = {}
    for name, tensor in source.tensors.items():
        part = next((part for part in parts if name.endswith(f".{part}")), None)
        if part is not None:
            sites.setdefault(name.removesuffix(f".{part}"), {})[part] = tensor
        elif any(component.startswith(prefix) for component in name.split(".")):
            raise CheckpointError(f"`{source.path}` has a tensor `{name}`, which has no counterpart here.")
        else:
            others[name] = tensor
    return sites, others


def module_at(source: Directory, tree: Tree, site: str) -> tuple[str, nn.Module]:
    """Return the name and the module of a site of the library."""
    name = site if site in tree.modules else without_wrappers(site)
    if name not in tree.modules or not name:
        raise CheckpointError(f"`{source.path}` was trained on another base: this model has no `{name}`.")
    return name, tree.modules[name]


def check_replaceable(source: Directory, tree: Tree, name: str) -> None:
    """Refuse a site at which the library's own adapter does not run."""
    if (reason := tree.unreplaceable_reason(name)) is not None:
        raise CheckpointError(f"`{source.path}` adapts `{name}`, but {reason}.")


def check_parts(source: Directory, site: str, tensors: Mapping[str, Tensor], wanted: Collection[str]) -> None:
    """Refuse a site that lacks one of its tensors."""
    for part in wanted:
        if part not in tensors:
            raise CheckpointError(f"`{source.path}` is damaged: `{site}` has no {part.removesuffix('.weight')}.")


def check_shape(source: Directory, name: str, tensor: Tensor, shape: Collection[int]) -> Tensor:
    """Return a tensor of a file; refuse one that does not have the shape that fits the model."""
    if list(tensor.shape) != list(shape):
        raise CheckpointError(
            f"`{source.path}` does not fit this model: `{name}` is {list(tensor.shape)} in the file, but must be "
            f"{list(shape)}."
        )
    return tensor


def check_values(state: Mapping[str, Tensor]) -> None:
    """Refuse a model on the meta device, whose tensors have shapes alone."""
    name = next((key for key, tensor in state.items() if tensor.is_meta), None)
    if name is not None:
        raise CheckpointError(f"`{name}` is on the meta device and has no values. Load the model's weights first.")


def no_counterpart(what: str) -> PlanError:
    """Return the error for something that the library does not have."""
    return PlanError(f"The peft library has no counterpart for {what}. Save it with `save_adapter`.")
