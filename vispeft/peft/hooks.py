"""Forward hooks of an injected model.

One static hook runs all deltas of a module; a second one, before the call, changes the input for the deltas that need
that. Which hooks other libraries add, and in which order, decides only whether a call may save memory or time, never
its result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from vispeft.errors import PlanError
from vispeft.peft.channel_trial import channel_dim_by_trial
from vispeft.peft.deformable_sampling import DeformableSampling
from vispeft.peft.methods.base import AroundDelta, Delta, widths
from vispeft.peft.methods.context import Tables
from vispeft.peft.methods.fused_linear import BypassedInputs, fused_forward
from vispeft.peft.methods.lora import LinearLoRA
from vispeft.peft.methods.map_sizes import MapSize, gives_maps
from vispeft.peft.methods.prompt import with_rotary_positions
from vispeft.peft.methods.recomputed_inputs import RecomputedInputs, is_recomputed
from vispeft.peft.outputs import Path, first_features, replaced
from vispeft.peft.owner_hooks import BatchHooks, OwnerHooks
from vispeft.peft.reentrant_checkpoints import ReentrantCheckpoints, can_recompute
from vispeft.peft.relu_signs import ReLUSigns, keeps_its_output


class SiteHooks:
    """Hooks of one injection, and the tables of tensors that they share."""

    def __init__(self) -> None:
        self.tables = Tables()
        self.bypassed_inputs = BypassedInputs()
        self.relu_signs = ReLUSigns()
        self.deformable_sampling = DeformableSampling(_is_own_hook)

    def add_to_site(self, module: nn.Module, delta: Delta, before: Sequence[Delta]) -> list[RemovableHandle]:
        """Make a module run a new delta from now on. Returns the handles of the hooks that this needs.

        before: deltas that the module has already
        """
        handles = []
        if not before:
            # before the hooks of others, as of those that collect features: they get what the deltas give
            handles.append(module.register_forward_hook(self.run_deltas, prepend=True, with_kwargs=True))
            if type(delta) is LinearLoRA:
                handles.append(module.register_forward_pre_hook(self.bypassed_inputs.bypass_base))
        if isinstance(delta, AroundDelta) and not any(isinstance(other, AroundDelta) for other in before):
            handles.append(module.register_forward_pre_hook(self.change_input, with_kwargs=True))
        return handles

    def add_to_sources(self, model: nn.Module) -> list[RemovableHandle]:
        """Record what the tables hold. Returns the handles of the hooks."""
        base = list(dict.fromkeys(_base_modules(model)))
        # before the deltas of the same module, which change its output
        handles = [
            module.register_forward_hook(self.tables.recomputed_inputs.record, prepend=True)
            for module in base
            if is_recomputed(module)
        ]
        return [
            *handles,
            *self._add_to_relus(model, base),
            *self._add_to_maps(base),
            *self.deformable_sampling.add_to(base),
        ]

    def add_to_checkpoints(self, model: nn.Module) -> list[RemovableHandle]:
        """Let reentrant checkpoints of frozen layers give gradients. Returns the handles of the hooks."""
        layers = [module for module in dict.fromkeys(_base_modules(model)) if can_recompute(module)]
        checkpoints = ReentrantCheckpoints()
        return [layer.register_forward_pre_hook(checkpoints.require_gradient) for layer in layers]

    def change_input(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Pass the first input of a module through the deltas around it, from the outermost: a forward pre-hook."""
        around = [delta for delta in deltas_of(module) if isinstance(delta, AroundDelta) and delta.is_active]
        if not around:
            return args, kwargs
        name = None if args else next(iter(kwargs), None)
        x = args[0] if args else kwargs.get(name or "")
        if not isinstance(x, Tensor):
            raise PlanError(
                f"A {type(module).__name__} with a delta around it must get a tensor first, but gets a "
                f"{type(x).__name__}. Name a module inside it."
            )
        given = x
        for delta in reversed(around):
            x = delta.before(x)
        kwargs = with_rotary_positions(kwargs, given, x)
        return ((x, *args[1:]), kwargs) if name is None else (args, {**kwargs, name: x})

    def run_deltas(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Any:
        """Pass the output of a module through its deltas in turn: a forward hook.

        Of several outputs, also inside each other, it is the first tensor of real numbers.
        """
        x = _input_of(args, kwargs)
        place, y = ((), output) if isinstance(output, Tensor) else _features_of(module, output)
        frozen = y
        base = None if torch.compiler.is_compiling() or hooks_before_deltas(module) else module
        deltas = [delta for delta in deltas_of(module) if delta.is_active]
        if not torch.compiler.is_compiling():
            self.relu_signs.need(x)
        if (bypassed := self.bypassed_inputs.take(args)) is not None:
            x, y = bypassed, fused_forward(module, bypassed)
            deltas, base = deltas[1:], None
        for delta in deltas:
            for channel_dim in delta.channel_dims:
                if not channel_dim.is_known(y):
                    dim = channel_dim_by_trial(module, args, kwargs, frozen, channel_dim.channels)
                    if dim is not None:
                        channel_dim.settle(y, dim)
            y = delta(x, y, base)
            base = None
        return replaced(output, place, y) if place else y

    def _add_to_relus(self, model: nn.Module, base: Sequence[nn.Module]) -> list[RemovableHandle]:
        """Let ReLU modules keep signs where nothing needs their outputs."""
        signs = self.relu_signs
        relus = [module for module in base if keeps_its_output(module)]
        if not relus:
            return []
        trained = [module for module in base if any(p.requires_grad for p in module.parameters(recurse=False))]
        return [
            model.register_forward_pre_hook(signs.begin_pass),
            *(module.register_forward_pre_hook(signs.detach_input) for module in relus),
            *(module.register_forward_hook(signs.keep_signs) for module in relus),
            *(module.register_forward_pre_hook(signs.need_input) for module in trained),
        ]

    def _add_to_maps(self, base: Sequence[nn.Module]) -> list[RemovableHandle]:
        """Record the sizes of maps where sites need them. base: modules in the model's order"""
        sizes = self.tables.map_sizes
        if not sizes.sites:
            return []
        positions = {module: position for position, module in enumerate(base)}
        for site in sizes.sites:
            site.end = max(positions[module] for module in _base_modules(site.module))
        return [
            module.register_forward_hook(sizes.new(channel_dim=widths(module).dim, position=positions[module]).record)
            for module in base
            if gives_maps(module)
        ]


def deltas_of(module: nn.Module) -> list[Delta]:
    """Return the deltas of a module's output, in the order in which they run."""
    return [child for child in module.children() if isinstance(child, Delta)]


def hooks_before_deltas(module: nn.Module) -> list[Callable[..., Any]]:
    """Return the forward hooks of others that get the module's output before its deltas."""
    before: list[Callable[..., Any]] = []
    for hook in module._forward_hooks.values():
        if _is_method_of(hook, SiteHooks):
            break
        if not _is_method_of(hook, RecomputedInputs, ReLUSigns, MapSize, DeformableSampling):
            before.append(hook)
    return before


def hook_of_others(module: nn.Module) -> str | None:
    """Return the name of a hook of others that may change what the module or its deltas compute; None without one.

    Hooks that get the output after the deltas change nothing between the module and them.
    """
    ours = BypassedInputs, ReLUSigns, DeformableSampling, ReentrantCheckpoints, SiteHooks, OwnerHooks, BatchHooks
    before = [hook for hook in module._forward_pre_hooks.values() if not _is_method_of(hook, *ours)]
    others = [*before, *(hook for hook in hooks_before_deltas(module) if not _is_method_of(hook, OwnerHooks))]
    return None if not others else getattr(others[0], "__qualname__", type(others[0]).__qualname__)


def _base_modules(module: nn.Module) -> Iterator[nn.Module]:
    """Yield a module and those inside it, but for deltas."""
    if not isinstance(module, Delta):
        yield module
        for child in module.children():
            yield from _base_modules(child)


def _is_method_of(hook: Callable[..., Any], *kinds: type) -> bool:
    """Return True for a hook that is a method of an object of one of these classes."""
    return isinstance(hook, MethodType) and isinstance(hook.__self__, kinds)


def _is_own_hook(hook: Callable[..., Any]) -> bool:
    """Return True for a hook of this package."""
    tables = RecomputedInputs, MapSize, BypassedInputs, ReLUSigns, DeformableSampling
    return _is_method_of(hook, SiteHooks, OwnerHooks, BatchHooks, *tables)


def _input_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Return the first input of a module; where it is no tensor, the first tensor of real numbers in all inputs."""
    first = args[0] if args else next(iter(kwargs.values()), None)
    if isinstance(first, Tensor):
        return first
    found = first_features((args, kwargs))
    return first if found is None else found[1]


def _features_of(module: nn.Module, output: Any) -> tuple[Path, Tensor]:
    """Return the features among a module's several outputs, with their place; PlanError where there are none."""
    found = first_features(output)
    if found is None:
        raise PlanError(
            f"A {type(module).__name__} with a delta must give a tensor of real numbers, or a tuple, mapping or "
            f"dataclass that holds one, but gives a {type(output).__name__}. Name a module inside it."
        )
    return found
