"""Contract of the trainable modules at sites, and of the methods that build them.

A delta gets the frozen module's input x and output y and returns the output that replaces it: `y' = delta(x, y)`. A
delta around a module changes its input as well. A weight delta does the same to a parameter, for weights that are read
by functions and not by a module's call. `Context` lets deltas share state and know the size of the feature map;
`Scheduled` lets them change with the progress of training.
"""

from __future__ import annotations

import math
import typing
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import MISSING, dataclass, fields
from itertools import chain
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from vispeft.errors import PlanError
from vispeft.io.names import did_you_mean
from vispeft.peft.methods.context import Context
from vispeft.peft.norms import is_norm


@dataclass(frozen=True)
class Method(ABC):
    """Kind and settings of a delta, given once for many sites: a frozen dataclass of plain values."""

    name: ClassVar[str]
    # False for a method whose deltas change the output before the first optimizer step
    is_identity_at_start: ClassVar[bool] = True
    # False for a method whose deltas are never linear in the weights
    merges: ClassVar[bool] = True
    # tensors of its deltas whose learning rate LoRA+ raises: those that its papers call B
    lora_plus_tensors: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def for_module(self, module: nn.Module, context: Context) -> Delta | None:
        """Return the delta for a module; None to attach nothing. Raise PlanError for a module not served."""

    @abstractmethod
    def for_parameter(self, parameter: Tensor, context: Context) -> WeightDelta | None:
        """Return the delta for a parameter; None to attach nothing. Raise PlanError for a parameter not served."""

    def to_dict(self) -> dict[str, Any]:
        """Return `{"method": name, ...}` with every field, as a configuration writes it."""
        return {"method": self.name, **{field.name: getattr(self, field.name) for field in fields(self)}}

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Self:
        """Return the method of a configuration's values; refuse unknown, missing and ill-typed ones by name."""
        known = {field.name: field for field in fields(cls)}
        types = typing.get_type_hints(cls)
        for key, value in options.items():
            if key not in known:
                options_text = ", ".join(known) or "none"
                raise PlanError(
                    f"`{key}` is not an option of `{cls.name}`.{did_you_mean(key, known)} It has {options_text}."
                )
            _check_type(key, value, types[key])
        missing = [key for key, field in known.items() if field.default is MISSING and key not in options]
        if missing:
            raise PlanError(f"`{cls.name}` needs `{missing[0]}`, which is not given.")
        return cls(**options)


class Delta(nn.Module, ABC):
    """A trainable module beside a frozen one.

    is_active: False while deltas are disabled
    channel_dim: `ChannelDim` of y, for deltas that need it; where the first y does not tell it, it is
        found by a trial before the delta runs
    """

    # a ChannelDim, whose class needs this module; of any type, for subclasses to set without a declaration
    channel_dim: Any = None

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method
        self.is_active = True

    @property
    def channel_dims(self) -> tuple[Any, ...]:
        """The `channel_dim` of this delta, and of others that it runs."""
        return () if self.channel_dim is None else (self.channel_dim,)

    @abstractmethod
    def forward(self, x: Tensor, y: Tensor, base: nn.Module | None) -> Tensor:
        """Return the output that replaces the frozen module's output y for its input x.

        base: the frozen module, where y is its own fresh output that nobody else holds; None otherwise
        """

    @abstractmethod
    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None] | None:
        """Return weight and bias with which the frozen module alone computes the same; None if there are none."""

    def extra_repr(self) -> str:
        return repr(self.method)


class AroundDelta(Delta):
    """A delta that changes the input of its module too.

    Of several deltas at a module, the last attached is the outermost: its `before` runs first, its `forward` last. The
    x that every `forward` gets is what the frozen module got. Other arguments of the module, such as masks, stay as
    they are; only rotary positions (`rope`) get entries for tokens that are added.
    """

    @abstractmethod
    def before(self, x: Tensor) -> Tensor:
        """Return the input that the frozen module gets in place of x."""


def in_merge_order(deltas: Iterable[nn.Module]) -> list[Delta]:
    """Return a module's deltas as their merging has to fold them: those around it change what the others read too."""
    found = [delta for delta in deltas if isinstance(delta, Delta)]
    return sorted(found, key=lambda delta: isinstance(delta, AroundDelta))


class Scheduled(ABC):
    """A module, of a delta or shared by several, that changes with the progress of training.

    What it needs to resume must be parameters or buffers.
    """

    @abstractmethod
    def on_step(self, step: int, num_steps: int) -> None:
        """React to an update of the weights, whose gradients are still there.

        step: steps done, from 1
        num_steps: steps of the whole run
        """


class WeightDelta(nn.Module, ABC):
    """A trainable module that is applied to a parameter whenever it is read. It always merges."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method
        self.is_active = True

    @abstractmethod
    def forward(self, weight: Tensor) -> Tensor:
        """Return the value that replaces the parameter."""

    def extra_repr(self) -> str:
        return repr(self.method)


@dataclass(frozen=True)
class Widths:
    """Input and output features of a module.

    dim: dimension of the output of its last map that holds the features, 1 or -1
    is_mixed: True for a module with maps of both kinds
    is_map: True for a module that is such a map itself, so that `dim` is known to be that of its own output
    """

    inputs: int
    outputs: int
    dim: int
    is_mixed: bool = False
    is_map: bool = False


def widths(module: nn.Module) -> Widths:
    """Return a module's widths: its own, or those of the first and last map inside it."""
    own = _own_widths(module)
    if own is not None:
        return own
    maps = list(_maps(module))
    if not maps and is_norm(module) and (features := _features_of_norm(module)):
        return Widths(features, features, -1)
    if not maps:
        raise PlanError(
            f"A {type(module).__name__} has no linear map, convolution or norm that tells its width. "
            f"Name a module that has one."
        )
    return Widths(maps[0].inputs, maps[-1].outputs, maps[-1].dim, len({each.dim for each in maps}) > 1)


def trainable(*shape: int, like: Tensor) -> nn.Parameter:
    """Return a zero parameter on the device of `like`, in its precision, but in float32 if that is a half one."""
    dtype = like.dtype if like.dtype in (torch.float32, torch.float64) else torch.float32
    return nn.Parameter(torch.zeros(*shape, dtype=dtype, device=like.device))


def reference_tensor(module: nn.Module) -> Tensor:
    """Return a parameter of the module, or else a buffer, for device and precision; an empty CPU tensor without one."""
    return next(chain(module.parameters(), module.buffers()), torch.empty(0))


def full_precision(tensor: Tensor) -> AbstractContextManager[None]:
    """Return a context in which autocast leaves the precision of operations on a tensor's device alone."""
    device = tensor.device.type
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


def at_least(name: str, value: float, bound: float) -> None:
    """Refuse an option below its bound."""
    if not value >= bound:
        raise PlanError(f"`{name}` must be at least {bound}, but is {value}.")


def not_zero(name: str, value: float) -> None:
    """Refuse a factor that is 0 or not finite."""
    if not (math.isfinite(value) and value):
        raise PlanError(f"`{name}` must be finite and not 0, or nothing would ever be learnt, but is {value}.")


def one_of(name: str, value: str, known: Collection[str]) -> None:
    """Refuse an option that is not one of the known values."""
    if value not in known:
        raise PlanError(f"`{name}` must be one of {', '.join(known)}, but is {value!r}.")


def _maps(module: nn.Module) -> Iterator[Widths]:
    """Yield the widths of the maps in a module, in the order of registration; a fully described module counts alone."""
    own = _own_widths(module)
    if own is not None:
        yield own
        return
    for child in module.children():
        if not isinstance(child, Delta):
            yield from _maps(child)


def _own_widths(module: nn.Module) -> Widths | None:
    """Return the widths of a module that is a map itself; None for others."""
    match module:
        case nn.Linear():
            return Widths(module.in_features, module.out_features, -1, is_map=True)
        case nn.Conv2d():
            return Widths(module.in_channels, module.out_channels, 1, is_map=True)
        case nn.LayerNorm():
            size = module.normalized_shape[-1]
            return Widths(size, size, _channel_dim(module), is_map=True)
        case nn.BatchNorm2d():
            return Widths(module.num_features, module.num_features, 1, is_map=True)
        case nn.GroupNorm():
            return Widths(module.num_channels, module.num_channels, 1, is_map=True)
        case nn.MultiheadAttention():
            return Widths(module.embed_dim, module.embed_dim, -1, is_map=True)
    return None


def _features_of_norm(norm: nn.Module) -> int:
    """Return the features of a norm of another library, which its weight [C] tells; 0 where it has none."""
    weight = dict(norm.named_parameters(recurse=False)).get("weight")
    return 0 if weight is None or weight.ndim != 1 else len(weight)


@torch.no_grad()
def _channel_dim(norm: nn.LayerNorm) -> int:
    """Return the dimension along which a LayerNorm works: 1 for a subclass that takes [B, C, H, W], as segmenters have.

    Found by a trial, for neither names nor options tell it reliably.
    """
    if type(norm).forward is nn.LayerNorm.forward or len(norm.normalized_shape) > 1:
        return -1
    try:
        norm.forward(reference_tensor(norm).new_zeros(1, norm.normalized_shape[0], 1, 1))
    except (RuntimeError, ValueError, IndexError):
        return -1
    return 1


def _check_type(key: str, value: Any, annotation: Any) -> None:
    """Refuse a value that is not of the field's type; an int serves for a float, a bool for neither."""
    allowed = typing.get_args(annotation) or (annotation,)
    fits = type(value) in allowed or (float in allowed and type(value) is int)
    if not fits:
        words = " or ".join("null" if kind is type(None) else kind.__name__ for kind in allowed)
        raise PlanError(f"`{key}` must be of type {words}, but is {value!r}.")
