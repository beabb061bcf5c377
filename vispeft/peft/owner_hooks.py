"""Hooks of a model whose batch has an adapter for each image, at modules that no delta can serve row by row.

A module that reads parameters which an adapter changes (trained in full, or by deltas of the parameters) runs once more
for the images of each such adapter. That is the module that owns them, or, for deltas, the one around it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_unflatten

from vispeft.errors import PlanError
from vispeft.peft.methods.base import Delta
from vispeft.peft.methods.image_rows import SEPARATELY, ImageBatch, ImageRows
from vispeft.peft.methods.mixture import Chain, WeightMixture
from vispeft.peft.places import place_of

# adapters of a part of the batch, as a context
Within = Callable[[tuple[str | None, ...]], AbstractContextManager[None]]

# values without images inside
_PLAIN = (Tensor, type(None), bool, int, float, str, torch.dtype, torch.device)


@dataclass(frozen=True)
class OwnerPart:
    """Images of a batch with one adapter, and what it changes in a module.

    images: their positions in the batch
    values: tensors trained in full, by name inside the module
    chains: deltas of parameters
    inner: deltas of parameters of the modules inside, for those that the module reads itself
    """

    adapter: str
    images: list[int]
    values: dict[str, Tensor]
    chains: list[tuple[WeightMixture, Chain]]
    inner: list[tuple[WeightMixture, Chain]]

    @property
    def is_needed(self) -> bool:
        """True where the module computes something else for these images."""
        return bool(self.values or self.chains) or any(mixture.was_read_outside for mixture, _ in self.inner)


class OwnerHooks:
    """Hooks of a module that reads parameters which adapters change.

    values: of its tensors trained in full, by adapter and name inside the module
    mixtures: of its parameters with deltas
    inner: of parameters with deltas of the modules directly inside, which it may read itself
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
        mixtures: tuple[Sequence[WeightMixture], Sequence[WeightMixture]],
        within: Within,
    ) -> None:
        self.site, self.values = site, values
        self.mixtures, self.inner = mixtures
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
        """Find the parts of a batch whose adapters change what the module reads, by the adapter of each image."""
        self.parts = []
        for name in dict.fromkeys(name for name in adapters if name is not None):
            images = [image for image, other in enumerate(adapters) if other == name]
            chains, inner = _chains(self.mixtures, name), _chains(self.inner, name)
            values = self.values.get(name, {})
            if chains or inner or values:
                self.parts.append(OwnerPart(name, images, values, chains, inner))

    def before(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Let the module read its frozen parameters: a forward pre-hook."""
        if self.parts and not self._batch.is_probing:
            self.was_called = True
            for mixture in self.mixtures:
                mixture.is_readable, mixture.chosen = True, None
            for mixture in self.inner:
                mixture.is_open, mixture.was_read_outside, mixture.chosen_outside = True, False, None

    def after(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Any:
        """Replace the rows of the images whose adapters change the parameters: a forward hook."""
        if self._batch.is_probing:
            self._batch.record(self.site, args, dict(kwargs), output)
            return output
        if not self.parts:
            return output
        try:
            parts = [part for part in self.parts if part.is_needed]
            return self._replaced(module, parts, args, kwargs, output) if parts else output
        finally:
            for mixture in self.mixtures:
                mixture.is_readable = False
            for mixture in self.inner:
                mixture.is_open = False

    def _replaced(
        self, module: nn.Module, parts: list[OwnerPart], args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any
    ) -> Any:
        """Return the output with the rows of some parts of the batch computed anew."""
        count = self._batch.num_images
        values, arguments = tree_flatten((args, dict(kwargs)))
        if len(parts[0].images) == count:
            return self._run(module, parts[0], values, arguments)
        outputs, structure = tree_flatten(output)
        dims = self._dims("input", values)
        output_dims = self._dims("output", outputs)
        results = []
        for part in parts:
            rows = [
                value if dim is None else ImageRows(value, count, dim).of(part.images)
                for value, dim in zip(values, dims, strict=True)
            ]
            results.append(tree_leaves(self._run(module, part, rows, arguments)))
        joined = [
            y if dim is None else _joined(ImageRows(y, count, dim), parts, [each[index] for each in results])
            for index, (y, dim) in enumerate(zip(outputs, output_dims, strict=True))
        ]
        return tree_unflatten(joined, structure)

    def _dims(self, role: str, values: Sequence[object]) -> list[int | None]:
        """Return the dimension of the images in each input or output. PlanError where none has one."""
        unknown = next((value for value in values if not isinstance(value, _PLAIN)), None)
        dims = [] if unknown is not None else self._batch.dims(values, self.site)
        if all(dim is None for dim in dims):
            reason = f"that is a {type(unknown).__name__}" if unknown is not None else "that all images share"
            raise PlanError(
                f"`{self.site or 'The model'}`, which reads parameters that `{self.parts[0].adapter}` changes, has an "
                f"{role} {reason}, so that the images cannot be told apart. {SEPARATELY}"
            )
        return dims

    def _run(self, module: nn.Module, part: OwnerPart, values: list[Any], arguments: TreeSpec) -> Any:
        """Return the module's own output for the images of one adapter, under its parameters, without hooks."""
        args, kwargs = tree_unflatten(values, arguments)
        inside = self._within((part.adapter,) * len(part.images)) if _has_parts(module) else nullcontext()
        with self._changed(module, part), inside:
            return module.forward(*args, **kwargs)

    @contextmanager
    def _changed(self, module: nn.Module, part: OwnerPart) -> Iterator[None]:
        """Give the module the parameters of one adapter for the block."""
        for mixture, chain in part.chains:
            mixture.chosen = chain
        for mixture, chain in part.inner:
            mixture.chosen_outside = chain
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
            for mixture in self.mixtures:
                mixture.chosen = None
            for mixture in self.inner:
                mixture.chosen_outside = None


def _chains(mixtures: Sequence[WeightMixture], name: str) -> list[tuple[WeightMixture, Chain]]:
    """Return the deltas of an adapter with the mixtures that they belong to."""
    return [(mixture, chain) for mixture in mixtures if (chain := mixture.chain(name)) is not None]


def _joined(rows: ImageRows, parts: Sequence[OwnerPart], results: Sequence[Tensor]) -> Tensor:
    """Return a tensor with the results of parts of the batch in place of its own rows."""
    replaced = [(part.images, result) for part, result in zip(parts, results, strict=True)]
    rest = sorted({*range(rows.num_images)}.difference(*(images for images, _ in replaced)))
    return rows.joined([*replaced, (rest, rows.of(rest))] if rest else replaced)


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
            self._batch.begin(lambda: _run_in_eval_mode(module, first, named))

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
