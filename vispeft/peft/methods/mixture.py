"""Deltas of several named adapters at one site: `y + sum_i w_i (delta_i(x, y) - y)`, or one of them for each image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vispeft.errors import PlanError
from vispeft.peft.methods.base import AroundDelta, Delta, Method, WeightDelta, in_merge_order
from vispeft.peft.methods.context import Context
from vispeft.peft.methods.image_rows import SEPARATELY, ImageBatch
from vispeft.peft.methods.lora import LinearLoRA
from vispeft.peft.methods.segments import have_equal_columns, update_segments, update_weighted


@dataclass(frozen=True)
class Mixture(Method):
    """`y + sum_i w_i (delta_i(x, y) - y)` over the active ones of a model's named adapters, with their weights w_i.

    batch: shared by the sites of a model
    """

    name: ClassVar[str] = "adapters"
    batch: ImageBatch

    def for_module(self, module: nn.Module, context: Context) -> SiteMixture:
        """Return the mixture for a module."""
        return SiteMixture(self, context.site.name)

    def for_parameter(self, parameter: Tensor, context: Context) -> WeightMixture:
        """Return the mixture for a parameter."""
        return WeightMixture(self, context.site.name)

    def __repr__(self) -> str:
        return "Mixture()"


class Chain(nn.Module):
    """The deltas of one adapter at one site, as children in the order in which they run."""

    @property
    def deltas(self) -> list[nn.Module]:
        """The deltas."""
        return list(self.children())

    @property
    def is_around(self) -> bool:
        """True where a delta changes the module's input."""
        return any(isinstance(delta, AroundDelta) for delta in self.children())

    def before(self, x: Tensor) -> Tensor:
        """Return the input that the frozen module gets in place of x."""
        for delta in reversed(self.deltas):
            if isinstance(delta, AroundDelta):
                x = delta.before(x)
        return x

    def forward(self, x: Tensor, y: Tensor, base: nn.Module | None) -> Tensor:
        """Return y after the deltas in turn. base: as in `Delta.forward`"""
        for delta in self.children():
            y = delta(x, y, base)
            base = None
        return y

    def changed(self, weight: Tensor) -> Tensor:
        """Return a parameter after its deltas in turn."""
        for delta in self.children():
            weight = delta(weight)
        return weight

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None] | None:
        """Return weight and bias with which the module alone computes the same; None if there are none."""
        result: tuple[Tensor, Tensor | None] | None = (weight, bias)
        for delta in in_merge_order(self.children()):
            result = None if result is None else delta.merged(*result)
        return result


class SiteMixture(AroundDelta):
    """The adapters of a module, each a `Chain` under its name.

    running: the chains that are active
    weights: theirs, each a tensor without dimensions, so that compiled code does not depend on the values; None where
        one chain runs alone with weight 1
    by_image: the chain of each image of the batch, None for the plain module; None outside of `adapter_per_image`
    """

    def __init__(self, method: Mixture, site: str) -> None:
        super().__init__(method)
        self.site, self.batch = site, method.batch
        self.running: list[Chain] = []
        self.weights: list[Tensor] | None = None
        self.by_image: list[Chain | None] | None = None

    @property
    def channel_dims(self) -> tuple[Any, ...]:
        """Those of the deltas of all adapters; none in compiled code, which would depend on all that it reads."""
        if torch.compiler.is_compiling():
            return ()
        deltas = [delta for chain in self.children() for delta in chain.children() if isinstance(delta, Delta)]
        return tuple(dim for delta in deltas for dim in delta.channel_dims)

    def set_batch(self, images: tuple[str | None, ...]) -> None:
        """Find the chain of each image by its adapter; none for no images."""
        self.by_image = [None if name is None else self.chain(name) for name in images] if images else None

    def before(self, x: Tensor) -> Tensor:
        """Return the input that the frozen module gets in place of x: that of one adapter alone, or of each image's."""
        if self.by_image is not None and not self.batch.is_probing:
            return self._before_by_image(self.by_image, x)
        if self.weights is None:
            for chain in self.running:
                x = chain.before(x)
        return x

    def forward(self, x: Tensor, y: Tensor, base: nn.Module | None) -> Tensor:
        """Return the output of the active adapters, or of each image's adapter on its rows."""
        if self.batch.is_probing:
            self.batch.record(self.site, x, y)
            return y
        if self.by_image is not None:
            return self._by_image(self.by_image, x, y, base)
        if self.weights is None:
            for chain in self.running:
                y = chain(x, y, base)
            return y
        loras = [lora for lora in map(_only_lora, self.running) if lora is not None]
        if loras and len(loras) == len(self.running) and have_equal_columns(loras):
            return update_weighted(x, y, base, loras, self.weights)
        total = y
        for chain, weight in zip(self.running, self.weights, strict=True):
            total = _add_weighted(total, chain, weight, x, y)
        return total

    def chain(self, name: str) -> Chain | None:
        """Return the deltas of an adapter; None where it has none here."""
        return _chain(self, name)

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None] | None:
        """Return weight and bias of the mixture; None if there are none for one of its adapters."""
        if self.weights is None:
            return self.running[0].merged(weight, bias) if self.running else (weight, bias)
        total, total_bias = weight.clone(), None if bias is None else bias.clone()
        for chain, factor in zip(self.running, self.weights, strict=True):
            result = chain.merged(weight, bias)
            if result is None or (result[1] is None) != (bias is None):
                return None
            total += factor * (result[0] - weight)
            if total_bias is not None and result[1] is not None and bias is not None:
                total_bias += factor * (result[1] - bias)
        return total, total_bias

    def _before_by_image(self, chains: list[Chain | None], x: Tensor) -> Tensor:
        """Return the input that each image's adapter gives the frozen module. PlanError where they differ in size."""
        if not any(chain is not None and chain.is_around for chain in chains):
            return x
        rows = self.batch.rows(x, self.site)
        parts = []
        for chain, images in _images_of(chains):
            part = rows.of(images)
            parts.append((images, part if chain is None else chain.before(part)))
        if len({(part.shape[: rows.dim], part.shape[rows.dim + 1 :]) for _, part in parts}) > 1:
            raise PlanError(
                f"Adapters of this batch give `{self.site}` inputs of several sizes, as prompts do. {SEPARATELY}"
            )
        return rows.joined(parts)

    def _by_image(self, chains: list[Chain | None], x: Tensor, y: Tensor, base: nn.Module | None) -> Tensor:
        """Return the output of each image's adapter on its rows, in the order of the images."""
        x_rows, y_rows = self.batch.rows(x, self.site), self.batch.rows(y, self.site)
        loras = [None if chain is None else _only_lora(chain) for chain in chains]
        are_loras = all((lora is None) == (chain is None) for lora, chain in zip(loras, chains, strict=True))
        if are_loras and have_equal_columns(loras) and x_rows.dim == y_rows.dim == 0:
            return update_segments(x, y, base, loras)
        parts = []
        for chain, images in _images_of(chains):
            part = y_rows.of(images)
            parts.append((images, part if chain is None else chain(x_rows.of(images), part, None)))
        return y_rows.joined(parts)


class WeightMixture(WeightDelta):
    """The adapters of a parameter, each a `Chain` under its name; `running` and `weights` as in `SiteMixture`.

    by_image: True where the images of a batch have adapters, of which some are among these: only the hooks of the
        parameter's module can serve them
    is_readable: True while these hooks let the module itself read the parameter, as `chosen` changes it
    is_open: True while they let the module around it read it, as `chosen_outside` changes it
    chosen, chosen_outside: a chain; None for the frozen value
    was_read_outside: True once the module around it has read it
    """

    def __init__(self, method: Mixture, site: str) -> None:
        super().__init__(method)
        self.site, self.batch = site, method.batch
        self.running: list[Chain] = []
        self.weights: list[Tensor] | None = None
        self.by_image = self.is_readable = self.is_open = self.was_read_outside = False
        self.chosen: Chain | None = None
        self.chosen_outside: Chain | None = None

    def set_batch(self, images: tuple[str | None, ...]) -> None:
        """Find out whether the adapters of images are among these."""
        self.by_image = any(name is not None and self.chain(name) is not None for name in images)
        if not images:
            self.is_readable = self.is_open = False

    def forward(self, weight: Tensor) -> Tensor:
        """Return the parameter's value under the active adapters, or under the chosen one."""
        if self.batch.is_probing:
            return weight
        if self.by_image:
            if not (self.is_readable or self.is_open):
                raise PlanError(
                    f"`{self.site}` is read by a module that is neither its own nor the one around it, where images "
                    f"cannot be told apart. {SEPARATELY}"
                )
            self.was_read_outside = self.was_read_outside or not self.is_readable
            chosen = self.chosen if self.is_readable else self.chosen_outside
            return weight if chosen is None else chosen.changed(weight)
        if self.weights is None:
            for chain in self.running:
                weight = chain.changed(weight)
            return weight
        total = weight
        for chain, factor in zip(self.running, self.weights, strict=True):
            total = total + factor * (chain.changed(weight) - weight)
        return total

    def chain(self, name: str) -> Chain | None:
        """Return the deltas of an adapter; None where it has none here."""
        return _chain(self, name)


def weighted(base: Tensor, values: Sequence[tuple[float, Tensor]]) -> Tensor:
    """Return `base + sum_i w_i (value_i - base)`; of one value with weight 1, that value itself."""
    if len(values) == 1 and values[0][0] == 1:
        return values[0][1]
    is_real = base.is_floating_point()
    total = base.clone() if is_real else base.to(torch.float64)
    for weight, value in values:
        total += weight * (value.to(total) - base)
    return total if is_real else total.round()


def _images_of(chains: Sequence[Chain | None]) -> list[tuple[Chain | None, list[int]]]:
    """Return each chain with the images that have it."""
    groups: dict[Chain | None, list[int]] = {}
    for image, chain in enumerate(chains):
        groups.setdefault(chain, []).append(image)
    return list(groups.items())


def _chain(mixture: SiteMixture | WeightMixture, name: str) -> Chain | None:
    chain = mixture._modules.get(name)
    assert chain is None or isinstance(chain, Chain)
    return chain


def _add_weighted(total: Tensor, chain: Chain, weight: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Return `total + weight * (delta(x, y) - y)`; a low-rank update alone is scaled in its factor A."""
    lora = _only_lora(chain)
    if lora is not None:
        return update_weighted(x, total, None, [lora], [weight])
    output: Tensor = chain(x, y, None)
    return total + weight * (output - y)


def _only_lora(chain: Chain) -> LinearLoRA | None:
    """Return the delta of a chain that is the low-rank update of a linear map alone."""
    match chain.deltas:
        case [LinearLoRA() as lora] if not lora.active_dropout:
            return lora
    return None
