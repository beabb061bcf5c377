"""Cases of `bench_kernels.py`: deformable attention in the encoder and the decoder of Mask DINO."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from bench_kernels_measure import PASSES, Bound, Case, Entry, Tensors, compiled, plain
from torch import Tensor
from vispeft_kernels import deformable_attention
from vispeft_kernels.deformable import deformable_attention_around
from vispeft_kernels.deformable.reference import deformable_attention_reference
from vispeft_kernels.deformable.samples import Samples

Shapes = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Size:
    """shapes: (H, W) of each level. queries: none are the pixels of all levels, as in the encoder.

    is_around: offsets and logits are given, as a layer's projections have them, in place of locations and weights
    """

    name: str
    batch: int
    shapes: Shapes
    queries: int | None = None
    heads: int = 8
    dim: int = 32
    points: int = 4
    is_around: bool = False

    @property
    def pixels(self) -> int:
        return sum(height * width for height, width in self.shapes)

    @property
    def samples(self) -> int:
        """Of all queries, heads and images."""
        return self.batch * (self.queries or self.pixels) * self.heads * len(self.shapes) * self.points

    def draw(self) -> Tensors:
        """value and, near a query's own place, locations and weights, or offsets in pixels, logits and reference."""
        generator = torch.Generator().manual_seed(0)
        queries = self.queries or self.pixels
        bags = self.batch, queries, self.heads, len(self.shapes), self.points
        value = torch.randn(self.batch, self.pixels, self.heads, self.dim, generator=generator)
        offsets, logits = 2 * torch.randn(*bags, 2, generator=generator), torch.randn(bags, generator=generator)
        place = self._centres() if self.queries is None else torch.rand(1, queries, 2, generator=generator)
        if self.is_around:
            return {"value": value, "offsets": offsets, "logits": logits, "place": place}
        locations, weights = Samples(offsets, logits, place).resolve(self.shapes)
        return {"value": value, "locations": locations, "weights": weights}

    def _centres(self) -> Tensor:
        """The middle of each pixel, normalised, [1, pixels, 2] in x, y."""
        grids = [
            torch.cartesian_prod((torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width)
            for height, width in self.shapes
        ]
        return torch.cat(grids).flip(-1)[None]

    def least(self) -> dict[str, tuple[float, float]]:
        """Elements of all tensors once, each way; four corners of each sample times its channels."""
        values = float(self.batch * self.pixels * self.heads * self.dim)
        outs = float(self.batch * (self.queries or self.pixels) * self.heads * self.dim)
        forward = values + outs + 3 * self.samples
        flops = 8.0 * self.samples * self.dim
        return {
            PASSES[0]: (forward, flops),
            PASSES[1]: (2 * forward + values + 3 * self.samples, 3 * flops),
        }

    def case(self) -> Case:
        shapes = self.shapes
        trained = ("value", "offsets", "logits") if self.is_around else ("value", "locations", "weights")

        def resolved(t: Tensors) -> tuple[Tensor, Tensor, Tensor]:
            if not self.is_around:
                return t["value"], t["locations"], t["weights"]
            sampling_locations, attention_weights = Samples(t["offsets"], t["logits"], t["place"].detach()).resolve(
                shapes
            )
            return t["value"], sampling_locations, attention_weights

        def grid_sample(**t: Tensor) -> list[Tensor]:
            value, sampling_locations, attention_weights = resolved(t)
            return [deformable_attention_reference(value, shapes, sampling_locations, attention_weights)]

        def ours(**t: Tensor) -> list[Tensor]:
            if self.is_around:
                return [deformable_attention_around(t["value"], shapes, t["place"].detach(), t["offsets"], t["logits"])]
            return [deformable_attention(t["value"], shapes, t["locations"], t["weights"])]

        entries = {
            "grid_sample": Entry(plain(grid_sample, *trained)),
            "compile": Entry(compiled(grid_sample, *trained)),
            "deformops": Entry(deformops(shapes, resolved, trained)),
            "vispeft": Entry(plain(ours, *trained), is_ours=True),
            "vispeft, compiled": Entry(compiled(ours, *trained), is_ours=True),
        }
        exact = "locations", "place"
        return Case("deformable", self.name, self.draw, entries, "grid_sample", "grid_sample", self.least(), exact)


def deformops(
    shapes: Shapes, resolved: Callable[[Tensors], tuple[Tensor, Tensor, Tensor]], trained: tuple[str, ...]
) -> Callable[[Tensors], Bound]:
    """The package of that name, where it is installed; it wants Python 3.12 and torch 2.11."""

    def bind(tensors: Tensors) -> Bound:
        from deformops.registry import msda

        device = tensors["value"].device
        sizes = torch.tensor(shapes, device=device)
        starts = torch.cat([sizes.new_zeros(1), sizes.prod(1).cumsum(0)[:-1]])

        def run(**t: Tensor) -> list[Tensor]:
            value, sampling_locations, attention_weights = resolved(t)
            return [msda(value, sizes, starts, sampling_locations, attention_weights.flatten(3).to(value.dtype))]

        return plain(run, *trained)(tensors)

    return bind


def pyramid(*sides: int) -> Shapes:
    return tuple((side, side) for side in sides)


def cases(scale: str) -> Iterator[Case]:
    """Four levels at 512 px and at 800 x 1333; three, as `mask_dino` has on a ViT, at 1024 px; 300 queries."""
    if scale == "quick":
        yield Size("small encoder", 1, pyramid(6, 3), heads=2, dim=8).case()
        yield Size("small decoder, from offsets", 2, pyramid(6, 3), 5, heads=2, dim=8, is_around=True).case()
        return
    coco = ((100, 167), (50, 84), (25, 42), (13, 21))
    yield Size("encoder, 512 px, 5,440 queries", 1, pyramid(64, 32, 16, 8)).case()
    yield Size("encoder, 800 x 1333, 22,223 queries", 1, coco).case()
    yield Size("decoder, 512 px, 300 queries", 1, pyramid(64, 32, 16, 8), 300).case()
    if scale == "cpu":
        return
    large = pyramid(128, 64, 32)
    yield Size("Mask DINO encoder, 1024 px, batch 2, from offsets", 2, large, is_around=True).case()
    yield Size("Mask DINO decoder, 1024 px, batch 2, from offsets", 2, large, 300, is_around=True).case()
    yield Size("Mask DINO encoder, 640 px, batch 2, from offsets", 2, pyramid(80, 40, 20), is_around=True).case()
