"""The adapter file: one safetensors file with everything that was trained and with its own metadata."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vispeft.errors import CheckpointError, PlanError
from vispeft.io.tensors import own_copies, read_tensors, write_tensors
from vispeft.peft.adapters import add_named, alone
from vispeft.peft.fingerprint import fingerprint, is_rounded, precisions_of, rounded_fingerprints
from vispeft.peft.inject import Injection, attached, inject, injection_of, is_injected, remove
from vispeft.peft.methods.base import Method
from vispeft.peft.places import buffers_beside, buffers_inside
from vispeft.peft.plan import Plan
from vispeft.peft.quantization.kinds import quantization_of
from vispeft.peft.registry import UnknownMethodError
from vispeft.peft.targets import Names
from vispeft.peft.wrappers import unwrapped

FORMAT = 1

# the one metadata key of the safetensors header that is ours
_HEADER = "vispeft"


@dataclass(frozen=True)
class AdapterFile:
    """Metadata of an adapter file.

    plan: methods by site name, and the names of the parameters trained in full
    architecture: class name of the base
    fingerprint: SHA-256 of the base's frozen tensors, or of its names and shapes where nothing is frozen
    metadata: what the caller of `save_adapter` added
    rounded: the fingerprints of the base after rounding, by precision; none in files of earlier versions
    quantization: names of the quantisations of the base; empty for a base in floats
    """

    plan: Plan
    architecture: str
    fingerprint: str
    metadata: Mapping[str, Any]
    rounded: Mapping[str, str] = field(default_factory=dict)
    quantization: str = ""


def save_adapter(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    metadata: Mapping[str, Any] | None = None,
    name: str | None = None,
) -> None:
    """Write everything that was trained, and only that, to one file; an existing one is replaced in one step.

    metadata: anything that JSON can hold and a user of the file will need: class names, image size, normalisation
    name: of the adapter to write, of a model with named adapters; it keeps its metadata where none are given
    """
    model = unwrapped(model)
    if name is not None:
        with alone(model, name) as adapter:
            save_adapter(model, path, metadata=adapter.metadata if metadata is None else metadata)
        return
    plan = resolved_plan(model)
    state = state_tensors(model)
    own = own_keys(model, plan.train, state)
    _refuse_without_values(state)
    header = {
        "format": FORMAT,
        "plan": plan.to_dict(),
        "architecture": type(model).__name__,
        "fingerprint": fingerprint(state, own, delta_keys(model, state)),
        "rounded": rounded_fingerprints(state, own),
        "quantization": quantization_of(model),
        "metadata": dict(metadata or {}),
    }
    try:
        text = json.dumps(header)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"`metadata` must be plain values that JSON can hold: {error}.") from error
    write_tensors(Path(path), own_copies({key: state[key] for key in sorted(own)}), {_HEADER: text})


def load_adapter(model: nn.Module, path: str | os.PathLike[str], *, name: str | None = None) -> AdapterFile:
    """Inject the plan of an adapter file and load its tensors, in place.

    The model must be the base that the file was trained on, without a plan or with the very plan of the file; any other
    is refused and left as it was.
    name: keep the adapter beside other named ones, frozen, and make it the active one: see `set_adapters`. The model
        must have named adapters alone, or no plan
    """
    model, source = unwrapped(model), Path(path)
    if name is not None:
        file = describe(source)
        add_named(model, name, file.plan.train, lambda: load_adapter(model, source).metadata)
        return file
    tensors, file = _read(source)
    if is_injected(model):
        _refuse_named(injection_of(model))
    _check_names(model, file.plan, source)
    _check_base(model, tensors, file, source)
    if is_injected(model):
        if resolved_plan(model).to_dict() != file.plan.to_dict():
            raise CheckpointError(
                f"The model has another plan than `{source}`. Call `remove(model)` before `load_adapter`; or, to have "
                "both, load each into a plain base with a name: `load_adapter(model, path, name=...)`."
            )
        copy_tensors(model, tensors, file.plan.train, source)
        return file
    try:
        inject(model, file.plan)
    except PlanError as error:
        raise CheckpointError(f"`{source}` does not fit this model: {error}") from error
    try:
        copy_tensors(model, tensors, file.plan.train, source)
    except CheckpointError:
        remove(model)
        raise
    return file


def check_base(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Refuse a model whose frozen tensors are not those that an adapter file was trained on."""
    source = Path(path)
    _check_base(model, *_read(source), source)


def describe(path: str | os.PathLike[str]) -> AdapterFile:
    """Read the metadata of an adapter file, without a model."""
    return _read(Path(path))[1]


def resolved_plan(model: nn.Module) -> Plan:
    """Return the plan of an injected model with every pattern replaced by the names that it stands for."""
    injection = injection_of(model)
    _refuse_named(injection)
    trained = injection.trained
    deltas: dict[str, list[Method]] = {}
    for item in attached(model):
        deltas.setdefault(item.site, []).append(item.delta.method)
    return Plan({site: methods[0] if len(methods) == 1 else methods for site, methods in deltas.items()}, trained)


def _refuse_named(injection: Injection) -> None:
    """Refuse a model with named adapters, which have no plan in common."""
    if injection.named is not None:
        raise PlanError(
            f"The model has named adapters ({', '.join(injection.named.adapters)}). Pass the `name` of one of them to "
            "`save_adapter`, or a new one to `load_adapter`."
        )


def state_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of the model's state dict, detached and sharing its memory."""
    return {key: value.detach() for key, value in model.state_dict().items() if isinstance(value, Tensor)}


def _refuse_without_values(state: Mapping[str, Tensor]) -> None:
    """Refuse a model on the meta device, whose tensors have shapes alone."""
    name = next((key for key, tensor in state.items() if tensor.is_meta), None)
    if name is not None:
        raise CheckpointError(f"`{name}` is on the meta device and has no values. Load the model's weights first.")


def own_keys(model: nn.Module, trained: Iterable[str], state: Mapping[str, Tensor]) -> set[str]:
    """Return the names of all that training may change: deltas, parameters trained in full, and buffers with these.

    A tensor that several deltas share has one name here.
    """
    trained = set(trained)
    buffers = {*buffers_beside(model, trained), *buffers_inside(model, trained)} & state.keys()
    return trained | buffers | _without_repeats(delta_keys(model, state), state)


def _own_keys_of(
    tensors: Mapping[str, Tensor], model: nn.Module, trained: Iterable[str], state: Mapping[str, Tensor]
) -> set[str]:
    """Return the names of all that the training of a file may have changed.

    Files of earlier versions have the buffers beside trained parameters alone; their others belong to the base.
    """
    inside = {*buffers_inside(model, trained)} - {*buffers_beside(model, trained)}
    return own_keys(model, trained, state) - (inside - tensors.keys())


def delta_keys(model: nn.Module, state: Mapping[str, Tensor]) -> set[str]:
    """Return the names of the tensors of the attached deltas."""
    prefixes = tuple(f"{item.key}." for item in attached(model))
    return {key for key in state if key.startswith(prefixes)}


def _without_repeats(keys: Iterable[str], state: Mapping[str, Tensor]) -> set[str]:
    """Return the names of tensors, one for each, where several name the same memory."""
    first: dict[tuple[object, ...], str] = {}
    for key in sorted(keys):
        tensor = state[key]
        # empty tensors have no memory to compare
        identity = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype) if tensor.numel() else (key,)
        first.setdefault(identity, key)
    return set(first.values())


def copy_tensors(model: nn.Module, tensors: Mapping[str, Tensor], trained: Iterable[str], source: Path) -> None:
    """Copy the tensors of a file into an injected model, in place, once all of them are known to fit."""
    state = state_tensors(model)
    wanted = _own_keys_of(tensors, model, trained, state)
    if wanted != tensors.keys():
        missing, unknown = sorted(wanted - tensors.keys()), sorted(tensors.keys() - wanted)
        raise CheckpointError(
            f"`{source}` is damaged: it lacks {missing[:3]} and has {unknown[:3]} beyond its own plan."
        )
    for key, tensor in tensors.items():
        if tensor.shape != state[key].shape:
            raise CheckpointError(
                f"`{source}` does not fit this model: `{key}` is {list(tensor.shape)} in the file and "
                f"{list(state[key].shape)} in the model. Build the model as it was trained, with as many classes."
            )
    for key, tensor in tensors.items():
        state[key].copy_(tensor)


def _read(source: Path) -> tuple[dict[str, Tensor], AdapterFile]:
    """Return the tensors and the metadata of an adapter file."""
    if not source.is_file():
        remedy = (
            "`load_peft` reads directories of the peft library"
            if source.is_dir()
            else "`save_adapter` writes adapter files"
        )
        raise CheckpointError(f"`{source}` is not a file. {remedy}.")
    tensors, metadata = read_tensors(source)
    if _HEADER not in metadata:
        raise CheckpointError(f"`{source}` is a safetensors file, but not an adapter file of vispeft.")
    try:
        header = json.loads(metadata[_HEADER])
        version = header["format"]
        if version != FORMAT:
            raise CheckpointError(
                f"`{source}` has format {version}, but this vispeft reads format {FORMAT}. "
                f"Use the version that wrote it."
            )
        plan = Plan.from_dict(header["plan"])
        rounded = dict(header.get("rounded", {}))
        fingerprint_of_base, metadata_of_caller = str(header["fingerprint"]), dict(header["metadata"])
        quantization = str(header.get("quantization", ""))
        return tensors, AdapterFile(
            plan, header["architecture"], fingerprint_of_base, metadata_of_caller, rounded, quantization
        )
    except UnknownMethodError as error:
        raise CheckpointError(
            f"`{source}` has a method that is not registered: {error} Import the module of that method's class and "
            f"call `vispeft.register_method` with the class first."
        ) from error
    except (KeyError, TypeError, ValueError, PlanError) as error:
        raise CheckpointError(f"`{source}` has a damaged header: {error}.") from error


def _check_names(model: nn.Module, plan: Plan, source: Path) -> None:
    """Refuse a model that lacks one of the sites or trained parameters, by name."""
    names = Names(model)
    known = {*names.modules, *names.parameters, *(item.site for item in attached(model))}
    for name in [*plan.deltas, *plan.train]:
        if name not in known:
            raise CheckpointError(f"`{source}` was trained on another base: this model has no `{name}`.")


def _check_base(model: nn.Module, tensors: Mapping[str, Tensor], file: AdapterFile, source: Path) -> None:
    """Refuse a model whose frozen tensors are not those that the file was trained on, in any precision."""
    state = state_tensors(model)
    _refuse_without_values(state)
    own = _own_keys_of(tensors, model, file.plan.train, state)
    found = fingerprint(state, own, delta_keys(model, state))
    if found == file.fingerprint or is_rounded(state, own, file.fingerprint, file.rounded):
        return
    _refuse_another_quantization(file.quantization, quantization_of(model), source)
    precisions = ", ".join(sorted(precisions_of(state, own))) or "no precision"
    raise CheckpointError(
        f"`{source}` was trained on a {file.architecture} with fingerprint {file.fingerprint[:12]}, but this model is "
        f"a {type(model).__name__} with fingerprint {found[:12]} ({precisions}). Build the same model with the same "
        f"weights. To use another precision, convert the model after `load_adapter`."
    )


def _refuse_another_quantization(there: str, here: str, source: Path) -> None:
    """Refuse a base that is quantised in another way than that of the file."""
    if there == here:
        return
    if not there:
        raise CheckpointError(
            f"`{source}` was trained on a base that is not quantised, but the weights of this model are ({here}). Load "
            f"it on the base before `quantize`, and `merge`."
        )
    remedy = {"int8": "call `quantize(model, 8)`", "nf4": "call `quantize(model, 4)`"}.get(
        there, "quantise the model in the same way"
    )
    raise CheckpointError(
        f"`{source}` was trained on a base that is quantised ({there}), but the weights of this model are "
        f"{f'quantised in another way ({here})' if here else 'not'}. First {remedy}, with the same `skip`."
    )
