"""Hooks of a model whose batch has an adapter for each image, at modules that no delta can serve row by row.

A module whose own parameters an adapter changes (trained in full, or by deltas of the parameters) runs once more for
the images of each such adapter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from vispeft.errors import PlanError
from vispeft.peft.methods.base import Delta
from vispeft.peft.methods.image_rows import SEPARATELY, ImageBatch
from vispeft.peft.methods.mixture import Chain, WeightMixture
from vispeft.peft.places import place_of

# adapters of a part of the batch, as a context
Within = Callable[[tuple[str | None, ...]], AbstractContextManager[None]]

# arguments of nn.MultiheadAttention in their order
_ATTENTION = ("query", "key", "value", "key_padding_mask", "need_weights", "attn_mask", "average_attn_weights")


@dataclass(frozen=True)
class OwnerPart:
    """Images of a batch with one adapter, and what it changes in a module.

    images: their positions in the batch
    values: tensors trained in full, by name inside the module
    chains: deltas of parameters
    """

    adapter: str
    images: list[int]
    values: dict[str, Tensor]
    chains: list[tuple[WeightMixture, Chain]]


class OwnerHooks:
    """Hooks of a module with parameters of its own that adapters change.

    values: of its tensors trained in full, by adapter and name inside the module
    mixtures: of its parameters with deltas
    within: gives the modules inside the adapters of a part of the batch
    parts: of the batch; none outside of `adapter_per_image`
    was_called: True once the module was called since `adapter_per_image` began
    is_read: True if the model reads the tensors trained in full without a call; None where that is not known
    """

    def __init__(
        self,
        site: str,
        batch: ImageBatch,
        values: Mapping[str, dict[str, Tensor]],
        mixtures: Sequence[WeightMixture],
        within: Within,
    ) -> None:
        self.site, self.values, self.mixtures = site, values, mixtures
        self._batch, self._within = batch, within
        self.parts: list[OwnerPart] = []
        self.was_called = False
        self.is_read: bool | None = None

    def fit_values(self, module: nn.Module) -> None:
        """Bring the values to the module's device and precision."""
        for values in self.values.values():
            for leaf, value in values.items():
                owner, held = place_of(module, leaf).holder
                old = getattr(owner, held)
                fitting = value.to(old)
                values[leaf] = nn.Parameter(fitting, False) if isinstance(old, nn.Parameter) else fitting

    def set_batch(self, adapters: tuple[str | None, ...]) -> None:
        """Find the parts of a batch whose adapters change the module, by the adapter of each image."""
        self.parts = []
        for name in dict.fromkeys(name for name in adapters if name is not None):
            chains = [(mixture, chain) for mixture in self.mixtures if (chain := mixture.chain(name)) is not None]
            values = self.values.get(name, {})
            if chains or values:
                images = [image for image, other in enumerate(adapters) if other == name]
                self.parts.append(OwnerPart(name, images, values, chains))

    def before(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Let the module read its frozen parameters: a forward pre-hook."""
        if self.parts and not self._batch.is_probing:
            self.was_called = True
            for mixture in self.mixtures:
                mixture.is_readable, mixture.chosen = True, None

    def after(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Any:
        """Replace the rows of the images whose adapters change the parameters: a forward hook."""
        if self._batch.is_probing:
            self._batch.record(
                self.site, *args, *kwargs.values(), *(output if isinstance(output, tuple) else (output,))
            )
            return output
        if not self.parts:
            return output
        try:
            return self._replaced(module, args, kwargs, output)
        finally:
            for mixture in self.mixtures:
                mixture.is_readable = False

    def _replaced(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Any:
        call = _call_of(module, args, kwargs)
        outputs = output if isinstance(output, tuple) else (output,)
        if call is None or not all(one is None or isinstance(one, Tensor) for one in outputs):
            raise PlanError(
                f"`{self.site}`, whose parameters the adapter `{self.parts[0].adapter}` changes, must map one tensor "
                f"to one tensor to run with an adapter for each image. {SEPARATELY}"
            )
        rows = {key: self._batch.rows(call.arguments[key], self.site) for key in call.by_row}
        results: list[tuple[list[int], tuple[Tensor | None, ...]]] = []
        has_parts = _has_parts(module)
        for part in self.parts:
            inside = self._within((part.adapter,) * len(part.images)) if has_parts else nullcontext()
            with self._changed(module, part), inside:
                result = call.run(module, {key: each.of(part.images) for key, each in rows.items()})
            results.append((part.images, result if isinstance(result, tuple) else (result,)))
        joined = [self._joined(y, [(images, each[i]) for images, each in results]) for i, y in enumerate(outputs)]
        return tuple(joined) if isinstance(output, tuple) else joined[0]

    def _joined(self, y: Tensor | None, parts: list[tuple[list[int], Tensor | None]]) -> Tensor | None:
        """Return an output with the rows of `parts` in place of its own."""
        if y is None:
            return None
        rows = self._batch.rows(y, self.site)
        replaced = [(images, part) for images, part in parts if part is not None]
        rest = sorted({*range(rows.num_images)}.difference(*(images for images, _ in replaced)))
        return rows.joined([*replaced, (rest, rows.of(rest))] if rest else replaced)

    @contextmanager
    def _changed(self, module: nn.Module, part: OwnerPart) -> Iterator[None]:
        """Give the module the parameters of one adapter for the block."""
        for mixture in self.mixtures:
            mixture.is_readable, mixture.chosen = True, None
        for mixture, chain in part.chains:
            mixture.chosen = chain
        before = []
        try:
            for leaf, value in part.values.items():
                owner, held = place_of(module, leaf).holder
                before.append((owner, held, getattr(owner, held)))
                setattr(owner, held, value)
            yield
        finally:
            for owner, held, old in before:
                setattr(owner, held, old)


@dataclass(frozen=True)
class _Call:
    """Arguments of a module by position or name; by_row: those with rows of each image."""

    arguments: dict[int | str, Any]
    by_row: list[int | str]

    def run(self, module: nn.Module, rows: Mapping[int | str, Tensor]) -> Any:
        """Call the module's `forward`, without hooks, with these rows."""
        arguments: dict[int | str, Any] = {**self.arguments, **rows}
        positions = sorted(key for key in arguments if isinstance(key, int))
        names = {key: value for key, value in arguments.items() if isinstance(key, str)}
        return module.forward(*(arguments[position] for position in positions), **names)


def _call_of(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> _Call | None:
    """Return the arguments of a module with one tensor, or of attention; None for others."""
    arguments: dict[int | str, Any] = dict(enumerate(args))
    arguments.update(kwargs)
    if isinstance(module, nn.MultiheadAttention):
        arguments = {_ATTENTION[key] if isinstance(key, int) else key: value for key, value in arguments.items()}
    tensors = [key for key, value in arguments.items() if isinstance(value, Tensor)]
    if not isinstance(module, nn.MultiheadAttention):
        return _Call(arguments, tensors) if len(tensors) == 1 else None
    # a mask of two dimensions is that of every image
    by_row = [key for key in tensors if key != "attn_mask" or arguments[key].ndim == 3]
    return _Call(arguments, by_row)


def _has_parts(module: nn.Module) -> bool:
    """Return True for a module with modules of the base inside."""
    forms = module.get_submodule("parametrizations") if parametrize.is_parametrized(module) else None
    return any(child is not forms and not isinstance(child, Delta) for child in module.children())


class BatchHooks:
    """Hooks of a model whose batch has an adapter for each image."""

    def __init__(self, batch: ImageBatch) -> None:
        self._batch = batch

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Refuse a batch of another number of images: a forward pre-hook."""
        count = self._batch.num_images
        found = next((size for value in (*args, *kwargs.values()) if (size := _num_images(value)) is not None), None)
        if count and found is not None and found != count:
            raise PlanError(f"`adapter_per_image` has {count} adapters, but the model gets {found} images.")
        if count and found is not None and not torch.compiler.is_compiling():
            first = [_first_image(value, count) for value in args]
            named = {key: _first_image(value, count) for key, value in kwargs.items()}
            self._batch.run_first = lambda: _run_in_eval_mode(module, first, named)

    def after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Record the call: a forward hook."""
        if self._batch.num_images:
            self._batch.was_called = True


def _run_in_eval_mode(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Run a module in eval mode, in which it changes no statistics, and put it back into its modes."""
    modes = [(each, each.training) for each in module.modules()]
    try:
        module.eval()
        module.forward(*args, **kwargs)
    finally:
        for each, mode in modes:
            each.training = mode


def _num_images(value: Any) -> int | None:
    """Return the number of images in an argument of a model; None for what holds no images."""
    if isinstance(value, Tensor):
        return value.shape[0] if value.ndim > 2 else None
    is_list = isinstance(value, list | tuple) and value and all(isinstance(one, Tensor) for one in value)
    return len(value) if is_list else None


def _first_image(value: Any, count: int) -> Any:
    """Return the part of an argument that belongs to the first of `count` images."""
    is_batch = isinstance(value, Tensor) and value.ndim > 0 and value.shape[0] == count
    is_list = isinstance(value, list | tuple) and len(value) == count
    return value[:1] if is_batch or is_list else value
