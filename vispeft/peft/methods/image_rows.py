"""Rows of the images of a batch in the tensors that modules get and give."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from vispeft.errors import PlanError

SEPARATELY = "Run the images of each adapter in a batch of their own, after `set_adapters`."


class ImageBatch:
    """Adapter of each image in the running batch, None for the plain base; empty outside of `adapter_per_image`.

    The dimension of the images is the first where it has their number. Elsewhere, and where the second has the same
    size, a pass with the first image alone shows it, once a site: windows [B * k, ...], or queries first [Q, B, C].

    was_called: True once the model got a batch
    run_first: runs the model on the first image of its batch; None where that is not possible
    is_probing: True while it runs, when adapters do nothing and sites record shapes
    """

    def __init__(self) -> None:
        self.was_called = self.is_probing = False
        self.run_first: Callable[[], object] | None = None
        # None until the running pass needs them
        self._probed: dict[str, list[torch.Size]] | None = None
        # by site, shape, and whether images may share the tensor; None for one that they share
        self._known: dict[tuple[str, torch.Size, bool], int | None] = {}
        self.set_adapters(())

    def set_adapters(self, adapters: tuple[str | None, ...]) -> None:
        """Set the adapter of each image."""
        self.adapters = adapters
        # on these alone compiled code depends, and not on the names
        self.num_images, self.is_mixed = len(adapters), len(set(adapters)) > 1

    def begin(self, run_first: Callable[[], object]) -> None:
        """Begin a pass of the model, of which `run_first` repeats that of the first image."""
        self.run_first, self._probed = run_first, None

    def end(self) -> None:
        """Forget the last pass."""
        self.run_first = self._probed = None

    def record(self, site: str, *values: object) -> None:
        """Record the shapes at a site for one image."""
        shapes = [value.shape for value in tree_leaves(values) if isinstance(value, Tensor)]
        assert self._probed is not None
        self._probed.setdefault(site, []).extend(shapes)

    def rows(self, tensor: Tensor, site: str) -> ImageRows:
        """Return the rows of the images in a tensor at a site. PlanError where they cannot be told apart."""
        if not isinstance(tensor, Tensor) or not tensor.ndim:
            raise PlanError(f"`{site}` has a {type(tensor).__name__} in place of rows of images. {SEPARATELY}")
        return ImageRows(tensor, self.num_images, self._dim_of(tensor, site))

    def dims(self, values: Sequence[object], site: str) -> list[int | None]:
        """Return the dimension of the images in each of several values; None for what all images share."""
        tensors = [value for value in values if isinstance(value, Tensor)]
        if len(tensors) == 1 and tensors[0].ndim:
            return [self._dim_of(value, site) if isinstance(value, Tensor) else None for value in values]
        return [
            self._known_dim(site, value, may_be_shared=True) if isinstance(value, Tensor) else None for value in values
        ]

    def _dim_of(self, tensor: Tensor, site: str) -> int:
        """Return the dimension of the images in a tensor."""
        count = self.num_images
        # rows of one adapter belong together in any order
        if not self.is_mixed or (tensor.shape[0] == count and not (tensor.ndim == 3 and tensor.shape[1] == count)):
            return 0
        dim = self._known_dim(site, tensor)
        assert dim is not None
        return dim

    def _known_dim(self, site: str, tensor: Tensor, *, may_be_shared: bool = False) -> int | None:
        """Return the dimension of the images in a tensor, by the shapes of a pass with one image."""
        key = site, tensor.shape, may_be_shared
        if key not in self._known:
            shapes = self._shapes(site)
            found = {_grown_dim(shape, tensor.shape, self.num_images) for shape in shapes} - {None}
            if may_be_shared and tensor.shape in shapes:
                found.add(None)
            if len(found) != 1:
                raise PlanError(
                    f"`{site}` has {list(tensor.shape)}, in which the rows of the {self.num_images} images cannot be "
                    f"told apart. {SEPARATELY}"
                )
            self._known[key] = found.pop()
        return self._known[key]

    def _shapes(self, site: str) -> list[torch.Size]:
        """Return the shapes at a site for one image."""
        if self._probed is not None:
            return self._probed.get(site, [])
        if self.run_first is None or torch.compiler.is_compiling():
            raise PlanError(
                f"A pass with one image must show the dimension of the images at `{site}`. Call the model itself, and "
                "not a part of it, once without torch.compile in such a block before."
            )
        with self.probing() as probed:
            self.run_first()
        return probed.get(site, [])

    @contextmanager
    def probing(self) -> Iterator[dict[str, list[torch.Size]]]:
        """Let sites record shapes for the block, without gradients, and adapters do nothing."""
        self._probed, self.is_probing = {}, True
        try:
            with torch.no_grad():
                yield self._probed
        finally:
            self.is_probing = False


@dataclass(frozen=True)
class ImageRows:
    """A tensor in which each of B images has the same number of rows in turn along a dimension: [B * k, ...]."""

    tensor: Tensor
    num_images: int
    dim: int = 0

    def of(self, images: Sequence[int]) -> Tensor:
        """Return the rows of some images, which ascend."""
        each = self.tensor.shape[self.dim] // self.num_images
        if images[-1] - images[0] == len(images) - 1:
            return self.tensor.narrow(self.dim, images[0] * each, len(images) * each)
        return torch.cat([self.tensor.narrow(self.dim, image * each, each) for image in images], self.dim)

    def joined(self, parts: Sequence[tuple[Sequence[int], Tensor]]) -> Tensor:
        """Return the rows of all images in their order, from those of groups of images."""
        pieces: dict[int, Tensor] = {}
        for images, part in parts:
            pieces |= zip(images, part.chunk(len(images), self.dim), strict=True)
        return torch.cat([pieces[image] for image in range(self.num_images)], self.dim)


def _grown_dim(one: torch.Size, many: torch.Size, count: int) -> int | None:
    """Return the dimension, first or second, that alone is `count` times that of one image; None if there is none."""
    for dim in range(min(2, len(one))):
        if many == torch.Size([*one[:dim], count * one[dim], *one[dim + 1 :]]):
            return dim
    return None
