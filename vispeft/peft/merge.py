"""Fold deltas into the frozen weights: all of them, or none."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vispeft.errors import PlanError
from vispeft.peft.hooks import deltas_of, hook_of_others
from vispeft.peft.inject import attached, base_parameters, injection_of, module_forms, remove
from vispeft.peft.methods.base import Delta, in_merge_order
from vispeft.peft.methods.base_modules import merge_unsupported_reason, tensor_unsupported_reason
from vispeft.peft.methods.mixture import SiteMixture
from vispeft.peft.quantization.kinds import frozen_weight, kind_of
from vispeft.peft.quantization.plain import make_plain
from vispeft.peft.wrappers import unwrapped

# names of deltas that a message lists for one reason
_LISTED = 6


@dataclass(frozen=True)
class MergedValue:
    """A frozen parameter, of `owner` under `name`, and the value that it gets."""

    owner: nn.Module
    name: str
    parameter: Tensor
    value: Tensor


@dataclass(frozen=True)
class _Held:
    """A tensor of a model, the module that holds it, and the bytes of memory that it spans."""

    name: str
    holder: nn.Module
    device: torch.device
    span: range


@torch.no_grad()
def merge(model: nn.Module) -> None:
    """Fold every delta into the frozen weights and take it out, in place. Of named adapters, the active ones count.

    A quantised map with deltas becomes a plain one: the values of its codes with their update. Quantised maps without
    deltas stay as they are; `dequantize` makes them plain. PlanError names the deltas that cannot be folded and the
    reasons, or one that `disabled` has switched off. On any error the model is as it was, deltas and all.
    """
    model = unwrapped(model)
    injection_of(model)
    if off := next((item.key for item in attached(model) if not item.delta.is_active), None):
        raise PlanError(f"`{off}` is switched off by `disabled`. Leave its block before `merge`.")
    changes, refused = merged_values(model)
    if refused:
        raise PlanError(
            f"These deltas do not merge: {_listed(refused)}. Keep them as an adapter file, or `remove` them."
        )
    before = [change.parameter.clone() for change in changes]
    try:
        for change in changes:
            change.parameter.copy_(change.value)
        remove(model)
        for change in changes:
            if kind_of(change.owner) is not None and change.name == "weight":
                assert isinstance(change.owner, nn.Linear | nn.Conv2d)
                make_plain(change.owner, change.parameter)
    except BaseException:
        for change, value in zip(changes, before, strict=True):
            change.parameter.copy_(value)
        raise


@torch.no_grad()
def merged_values(model: nn.Module) -> tuple[list[MergedValue], dict[str, str]]:
    """Return the values of the merged model's parameters, and the reason for each delta that cannot be folded.

    The reasons are by the name of the delta's tensors. Of named adapters, the active ones count.
    """
    keys = {item.delta: item.key for item in attached(model)}
    held = list(_held(model))
    changes: list[MergedValue] = []
    refused: dict[str, str] = {}
    for module in model.modules():
        try:
            mine = _module_changes(module)
            reason = next((why for change in mine if (why := _unsupported_reason(change, held)) is not None), None)
        except _Refused as error:
            mine, reason = [], str(error)
        if reason is not None:
            forms = [delta for _, form in module_forms(module) for delta in form.children()]
            refused |= {keys[delta]: reason for delta in (*deltas_of(module), *forms) if delta in keys}
        changes += mine
    return changes, refused


class _Refused(Exception):
    """Return the reason why a module's deltas cannot be folded, as a clause."""


def _module_changes(module: nn.Module) -> list[MergedValue]:
    """Return the parameters of one module that its deltas change, with their merged values."""
    parameters = base_parameters(module)
    if kind_of(module) is not None and deltas_of(module):
        assert isinstance(module, nn.Linear | nn.Conv2d)
        # the weight of the plain map that takes the place of the quantised one
        parameters["weight"] = nn.Parameter(frozen_weight(module), requires_grad=False)
    values: dict[str, Tensor] = {}
    for name, _ in module_forms(module):
        if (reason := tensor_unsupported_reason(module, name, parameters)) is not None:
            raise _Refused(reason)
        values[name] = getattr(module, name).clone()
    deltas = [delta for delta in deltas_of(module) if not isinstance(delta, SiteMixture) or delta.running]
    if deltas:
        values |= _folded(module, deltas, parameters)
    return [MergedValue(module, name, parameters[name], value) for name, value in values.items()]


def _folded(module: nn.Module, deltas: list[Delta], parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weight, and the bias if it changes, that do the same as a map with its deltas."""
    if (reason := merge_unsupported_reason(module, parameters)) is not None:
        raise _Refused(reason)
    if (hook := hook_of_others(module)) is not None:
        raise _Refused(f"the hook `{hook}` of another library may change what the map computes")
    weight = getattr(module, "weight") if kind_of(module) is None else parameters["weight"]  # noqa: B009
    before = getattr(module, "bias", None)
    bias = before
    for delta in in_merge_order(deltas):
        result = delta.merged(weight, bias)
        if result is None:
            without = "" if before is not None else ", since it has no bias"
            raise _Refused(f"no weight and bias of the map do the same as `{delta.method.name}`{without}")
        weight, bias = result
    return {"weight": weight} if bias is None or bias is before else {"weight": weight, "bias": bias}


def _unsupported_reason(change: MergedValue, held: list[_Held]) -> str | None:
    """Return the reason why a parameter must not be given its merged value, as a clause."""
    old, new = change.parameter, change.value
    if new.shape != old.shape:
        return f"its `{change.name}` is {list(old.shape)}, but would become {list(new.shape)}"
    if not old.is_meta and not new.to(old.dtype).isfinite().all() and old.isfinite().all():
        return f"merged values of its `{change.name}` are not finite in {str(old.dtype).removeprefix('torch.')}"
    span, own = _span(old), set(change.owner.modules())
    for other in held:
        overlaps = other.span.start < span.stop and span.start < other.span.stop and other.device == old.device
        if overlaps and other.holder not in own:
            return f"its `{change.name}` is also `{other.name}`, which would change with it"
    return None


def _held(model: nn.Module) -> Iterator[_Held]:
    """Yield every tensor of a model, under each of the modules that hold it."""
    for prefix, module in model.named_modules():
        for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            full = f"{prefix}.{name}" if prefix else name
            yield _Held(
                full.replace("parametrizations.", "").removesuffix(".original"), module, tensor.device, _span(tensor)
            )


def _span(tensor: Tensor) -> range:
    """Return the addresses of a tensor's memory; none for one without data."""
    start = tensor.data_ptr()
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    length = (1 + sum((size - 1) * stride for size, stride in steps)) * tensor.element_size()
    return range(start, start + length) if start and tensor.numel() else range(0)


def _listed(refused: dict[str, str]) -> str:
    """Return the deltas by reason, the first few of each by name."""
    groups: dict[str, list[str]] = {}
    for key, reason in refused.items():
        groups.setdefault(reason, []).append(f"`{key}`")
    return "; ".join(f"{_shortened(keys)} ({reason})" for reason, keys in groups.items())


def _shortened(names: list[str]) -> str:
    rest = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {rest} more" if rest > 0 else "")
