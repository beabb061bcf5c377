"""Rows of the images of a batch in the tensors that modules get and give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vispeft.errors import PlanError

SEPARATELY = "Run the images of each adapter in a batch of their own, after `set_adapters`."


class ImageBatch:
    """Adapter of each image in the running batch, None for the plain base; empty outside of `adapter_per_image`.

    was_called: True once the model got a batch
    """

    def __init__(self) -> None:
        self.was_called = False
        self.set_adapters(())

    def set_adapters(self, adapters: tuple[str | None, ...]) -> None:
        """Set the adapter of each image."""
        self.adapters = adapters
        # on these alone compiled code depends, and not on the names
        self.num_images, self.is_mixed = len(adapters), len(set(adapters)) > 1

    def rows(self, tensor: Tensor, site: str) -> ImageRows:
        """Return the rows of the images in a tensor at a site. PlanError where they cannot be told apart."""
        count = self.num_images
        if not isinstance(tensor, Tensor) or not tensor.ndim or tensor.shape[0] % count or not tensor.shape[0]:
            found = list(tensor.shape) if isinstance(tensor, Tensor) else f"a {type(tensor).__name__}"
            raise PlanError(
                f"`{site}` has {found} with a first dimension that is no multiple of the {count} images. {SEPARATELY}"
            )
        if self.is_mixed and tensor.ndim == 3 and tensor.shape[1] == count:
            raise PlanError(
                f"`{site}` has {list(tensor.shape)}, whose second dimension may hold the {count} images, as in "
                f"decoders that take queries first. {SEPARATELY} If it holds something else, another batch size works."
            )
        return ImageRows(tensor, count)


@dataclass(frozen=True)
class ImageRows:
    """A tensor [B * k, ...] in which each of B images has k rows in turn, such as its windows."""

    tensor: Tensor
    num_images: int

    def of(self, images: Sequence[int]) -> Tensor:
        """Return the rows of some images, which ascend: [len(images) * k, ...]."""
        each = self.tensor.shape[0] // self.num_images
        if images[-1] - images[0] == len(images) - 1:
            return self.tensor[images[0] * each : (images[-1] + 1) * each]
        return torch.cat([self.tensor[image * each : (image + 1) * each] for image in images])

    def joined(self, parts: Sequence[tuple[Sequence[int], Tensor]]) -> Tensor:
        """Return the rows of all images in their order, from those of groups of images."""
        pieces: dict[int, Tensor] = {}
        for images, part in parts:
            pieces |= zip(images, part.chunk(len(images)), strict=True)
        return torch.cat([pieces[image] for image in range(self.num_images)])
