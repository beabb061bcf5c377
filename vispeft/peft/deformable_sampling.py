"""Deformable attention of transformers' models: autograd keeps its inputs in place of all samples.

Their own code computes the output, without autograd, so that it is the same to the bit. Backward is that of
`vispeft_kernels.deformable`, which computes the samples again. Hooks alone do this; modules and functions of the
library stay as they are. `VISPEFT_KERNELS=reference` when the plan is injected leaves the model's own backward.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from vispeft_kernels.deformable import known_deformable_attention
from vispeft_kernels.dispatch import requested

from vispeft.peft.methods.base_modules import has_backward_hooks
from vispeft.peft.methods.fused_linear import TransparentHooks
from vispeft.peft.methods.tensor_table import TensorTable
from vispeft.peft.sampling_trial import PROJECTIONS, is_attention, is_sampler, resolve

IsOwnHook = Callable[[Callable[..., Any]], bool]


@dataclass
class _Call:
    """A call of an attention that runs.

    outputs: those of its projections, with their graph, by name
    weights: the attention weights with their graph, once the samples have been summed
    """

    module: nn.Module
    arguments: Mapping[str, Any]
    outputs: dict[str, Tensor] = field(default_factory=dict)
    weights: Tensor | None = None


class _Calls(threading.local):
    """Calls that run in a thread, the innermost last."""

    def __init__(self) -> None:
        self.running: list[_Call | None] = []


class DeformableSampling(TransparentHooks):
    """Hooks of the modules of one model that sample, or that have a function that does.

    is_own_hook: tells hooks of this package, which need no graph of the projections' outputs, from others
    """

    def __init__(self, is_own_hook: IsOwnHook) -> None:
        self._is_own_hook = is_own_hook
        self._inputs: TensorTable[tuple[Tensor, Tensor, Tensor]] = TensorTable()
        self._calls = _Calls()

    def add_to(self, modules: Sequence[nn.Module]) -> list[RemovableHandle]:
        """Add hooks where a trial gives the formula. Returns their handles."""
        if requested() == "reference":
            return []
        handles: list[RemovableHandle] = []
        for module in modules:
            if is_sampler(module):
                handles.append(module.register_forward_pre_hook(self.detach_inputs))
                handles.append(module.register_forward_hook(self.join))
            elif is_attention(module):
                handles += self._add_to_attention(module)
        return handles

    def _add_to_attention(self, module: nn.Module) -> list[RemovableHandle]:
        value, offsets, weights, output = (module.get_submodule(name) for name in PROJECTIONS)
        return [
            module.register_forward_pre_hook(self.begin, with_kwargs=True),
            *(each.register_forward_hook(self.detach_output) for each in (value, offsets, weights)),
            # before a hook that bypasses the map
            output.register_forward_pre_hook(self.join_input, prepend=True),
            # before hooks that run the module again, of a batch with several adapters
            module.register_forward_hook(self.end, prepend=True, always_call=True),
        ]

    def detach_inputs(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Keep autograd out of a sampler: a forward pre-hook."""
        if not _is_differentiated() or not self._is_unobserved(module) or len(args) != 7:
            return None
        value, sizes, shapes, starts, locations, weights, step = args
        if not any(each.requires_grad for each in (value, locations, weights)):
            return None
        detached = value.detach()
        self._inputs[detached] = (value, locations, weights)
        return detached, sizes, shapes, starts, locations.detach(), weights.detach(), step

    def join(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        """Join a sampler's output to its inputs: a forward hook."""
        if torch.compiler.is_compiling() or (inputs := self._inputs.pop(args[0])) is None:
            return None
        value, locations, weights = inputs
        return known_deformable_attention(output, value, args[2], locations, weights)

    def begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Begin a call of an attention: a forward pre-hook."""
        if torch.compiler.is_compiling():
            return
        arguments = {"attention_mask": None, **kwargs}
        reference, shapes = arguments.get("reference_points"), arguments.get("spatial_shapes_list")
        is_known = not args and isinstance(reference, Tensor) and not reference.requires_grad and shapes is not None
        is_served = is_known and _is_differentiated() and self._is_unobserved(*_projections(module))
        self._calls.running.append(_Call(module, arguments) if is_served else None)

    def detach_output(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        """Keep autograd out of what an attention does with a projection: a forward hook."""
        call = self._running()
        name = None if call is None else next((n for n in PROJECTIONS[:3] if getattr(call.module, n) is module), None)
        if call is None or name is None:
            return None
        call.outputs[name] = output
        return output.detach()

    def join_input(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Tensor] | None:
        """Join the sums of samples, the input of the last projection, to the outputs of the others: a pre-hook."""
        call = self._running()
        if call is None or call.module.output_proj is not module or len(call.outputs) != 3:
            return None
        value, locations, weights = resolve(
            call.module, call.arguments, *(call.outputs.pop(name) for name in PROJECTIONS[:3])
        )
        call.weights = weights
        shapes = call.arguments["spatial_shapes_list"]
        return (known_deformable_attention(args[0], value, shapes, locations, weights),)

    def end(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """End a call, also one that failed, and give the attention weights with their graph: a forward hook."""
        if torch.compiler.is_compiling() or not self._calls.running:
            return output
        call = self._calls.running.pop()
        if call is None or call.weights is None or output is None:
            return output
        first, _, *others = output
        return (first, call.weights, *others)

    def _running(self) -> _Call | None:
        """Return the innermost call, or None where it is left alone."""
        is_none = torch.compiler.is_compiling() or not self._calls.running
        return None if is_none else self._calls.running[-1]

    def _is_unobserved(self, *modules: nn.Module) -> bool:
        """Return True where no hook of others would see tensors without their graph, and all hooks of ours run."""
        return all(
            module._compiled_call_impl is None and self._is_own_hook(hook)
            for module in modules
            for hooks in (module._forward_hooks, module._forward_pre_hooks)
            for hook in hooks.values()
        ) and not any(map(has_backward_hooks, modules))

    def __reduce__(self) -> tuple[type[Self], tuple[IsOwnHook]]:
        # a copied or unpickled model runs no calls yet
        return type(self), (self._is_own_hook,)


def _projections(module: nn.Module) -> list[nn.Module]:
    return [module.get_submodule(name) for name in PROJECTIONS]


def _is_differentiated() -> bool:
    return torch.is_grad_enabled() and not torch.compiler.is_compiling()
