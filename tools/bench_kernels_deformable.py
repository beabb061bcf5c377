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
    """Size of a case.

    shapes: (H, W) of each level
    queries: number of queries; None for the pixels of all levels, as in the encoder
    from_offsets: inputs are offsets and logits, as a layer projects them, not sampling locations and attention weights
    """

    name: str
    batch: int
    shapes: Shapes
    queries: int | None = None
    heads: int = 8
    dim: int = 32
    points: int = 4
    from_offsets: bool = False

    @property
    def pixels(self) -> int:
        return sum(height * width for height, width in self.shapes)

    @property
    def samples(self) -> int:
        """Number of samples of all queries, heads and images."""
        return self.batch * (self.queries or self.pixels) * self.heads * len(self.shapes) * self.points

    def draw(self) -> Tensors:
        """Return value with sampling locations and attention weights near each query, or with offsets and logits."""
        generator = torch.Generator().manual_seed(0)
        queries = self.queries or self.pixels
        bags = self.batch, queries, self.heads, len(self.shapes), self.points
        value = torch.randn(self.batch, self.pixels, self.heads, self.dim, generator=generator)
        offsets, logits = 2 * torch.randn(*bags, 2, generator=generator), torch.randn(bags, generator=generator)
        reference_points = self._centres() if self.queries is None else torch.rand(1, queries, 2, generator=generator)
        if self.from_offsets:
            return {"value": value, "offsets": offsets, "logits": logits, "reference_points": reference_points}
        sampling_locations, attention_weights = Samples(offsets, logits, reference_points).resolve(self.shapes)
        return {"value": value, "sampling_locations": sampling_locations, "attention_weights": attention_weights}

    def _centres(self) -> Tensor:
        """Return the centre of each pixel, normalised: [1, pixels, 2], x and y."""
        grids = [
            torch.cartesian_prod((torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width)
            for height, width in self.shapes
        ]
        return torch.cat(grids).flip(-1)[None]

    def min_work(self) -> dict[str, tuple[float, float]]:
        """Return the elements of all tensors, once per pass, and the operations of four corners per sample."""
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
        trained = (
            ("value", "offsets", "logits")
            if self.from_offsets
            else ("value", "sampling_locations", "attention_weights")
        )

        def resolved(t: Tensors) -> tuple[Tensor, Tensor, Tensor]:
            if not self.from_offsets:
                return t["value"], t["sampling_locations"], t["attention_weights"]
            sampling_locations, attention_weights = Samples(
                t["offsets"], t["logits"], t["reference_points"].detach()
            ).resolve(shapes)
            return t["value"], sampling_locations, attention_weights

        def grid_sample(**t: Tensor) -> list[Tensor]:
            value, sampling_locations, attention_weights = resolved(t)
            return [deformable_attention_reference(value, shapes, sampling_locations, attention_weights)]

        def ours(**t: Tensor) -> list[Tensor]:
            if self.from_offsets:
                return [
                    deformable_attention_around(
                        t["value"], shapes, t["reference_points"].detach(), t["offsets"], t["logits"]
                    )
                ]
            return [deformable_attention(t["value"], shapes, t["sampling_locations"], t["attention_weights"])]

        entries = {
            "grid_sample": Entry(plain(grid_sample, *trained)),
            "compile": Entry(compiled(grid_sample, *trained)),
            "deformops": Entry(deformops(shapes, resolved, trained)),
            "vispeft": Entry(plain(ours, *trained), is_ours=True),
            "vispeft, compiled": Entry(compiled(ours, *trained), is_ours=True),
        }
        exact = "sampling_locations", "reference_points"
        return Case("deformable", self.name, self.draw, entries, "grid_sample", "grid_sample", self.min_work(), exact)


def deformops(
    shapes: Shapes, resolved: Callable[[Tensors], tuple[Tensor, Tensor, Tensor]], trained: tuple[str, ...]
) -> Callable[[Tensors], Bound]:
    """Return a `bind` of the package `deformops`, which requires Python 3.12 and torch 2.11."""

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
    """Yield cases with four levels at 512 px and 800 x 1333, and with three levels of `mask_dino` on a ViT."""
    if scale == "quick":
        yield Size("small encoder", 1, pyramid(6, 3), heads=2, dim=8).case()
        yield Size("small decoder, from offsets", 2, pyramid(6, 3), 5, heads=2, dim=8, from_offsets=True).case()
        return
    coco = ((100, 167), (50, 84), (25, 42), (13, 21))
    yield Size("encoder, 512 px, 5,440 queries", 1, pyramid(64, 32, 16, 8)).case()
    yield Size("encoder, 800 x 1333, 22,223 queries", 1, coco).case()
    yield Size("decoder, 512 px, 300 queries", 1, pyramid(64, 32, 16, 8), 300).case()
    if scale == "cpu":
        return
    large = pyramid(128, 64, 32)
    yield Size("Mask DINO encoder, 1024 px, batch 2, from offsets", 2, large, from_offsets=True).case()
    yield Size("Mask DINO decoder, 1024 px, batch 2, from offsets", 2, large, 300, from_offsets=True).case()
    yield Size("Mask DINO encoder, 640 px, batch 2, from offsets", 2, pyramid(80, 40, 20), from_offsets=True).case()
