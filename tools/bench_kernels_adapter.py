"""Cases of `bench_kernels.py`: the bottleneck adapter after a linear layer of a ViT, and adapters in a chain."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from bench_kernels_measure import PASSES, Case, Entry, Tensors, compiled, plain, vit_sizes
from torch import Tensor
from vispeft_kernels.adapter import Maps, autograd, bottleneck, bottleneck_chain, reference
from vispeft_kernels.adapter.options import AdapterOptions

MAPS = Maps._fields


@dataclass(frozen=True)
class Size:
    """Size of a case. count: number of adapters in a chain"""

    name: str
    rows: int
    channels: int
    width: int
    count: int = 1

    def draw(self) -> Tensors:
        generator = torch.Generator().manual_seed(0)
        n, c, w = self.count, self.channels, self.width
        shapes = {"down_w": (n, w, c), "down_b": (n, w), "up_w": (n, c, w), "up_b": (n, c)}
        maps = {name: shape[-1] ** -0.5 * torch.randn(shape, generator=generator) / 2 for name, shape in shapes.items()}
        return {"x": torch.randn(self.rows, c, generator=generator), **maps}

    def min_work(self) -> dict[str, tuple[float, float]]:
        """Return elements moved and operations of a kernel that reads the input once per pass and keeps z."""
        stream, kept = float(self.rows * self.channels), float(self.rows * self.width * self.count)
        flops = 4.0 * self.channels * kept
        return {
            PASSES[0]: (2 * stream + kept, flops),
            PASSES[1]: (2 * stream + kept + 3 * stream + kept, 3 * flops),
        }

    def case(self) -> Case:
        def eager(x: Tensor, **maps: Tensor) -> list[Tensor]:
            for one in zip(*(maps[name] for name in MAPS), strict=True):
                x = reference.bottleneck_add(x, x, Maps(*one), AdapterOptions())
            return [x]

        def in_torch(x: Tensor, **maps: Tensor) -> list[Tensor]:
            for one in zip(*(maps[name] for name in MAPS), strict=True):
                x = autograd.bottleneck_add(x, x, Maps(*one), AdapterOptions(), "torch")
            return [x]

        def ours(x: Tensor, **maps: Tensor) -> list[Tensor]:
            for one in zip(*(maps[name] for name in MAPS), strict=True):
                x = bottleneck(x, *one)
            return [x]

        def chain(x: Tensor, **maps: Tensor) -> list[Tensor]:
            down_w, down_b, up_w, up_b = (list(maps[name]) for name in MAPS)
            return [bottleneck_chain(x, down_w, down_b, up_w, up_b)]

        trained = "x", *MAPS
        entries = {
            "eager": Entry(plain(eager, *trained)),
            "compile": Entry(compiled(eager, *trained)),
            "vispeft, in torch": Entry(plain(in_torch, *trained), is_ours=True),
            "vispeft": Entry(plain(ours, *trained), is_ours=True),
            "vispeft, compiled": Entry(compiled(ours, *trained), is_ours=True),
        }
        if self.count > 1:
            entries["vispeft, chain"] = Entry(plain(chain, *trained), is_ours=True)
        return Case("adapter", self.name, self.draw, entries, "eager", "eager", self.min_work())


def cases(scale: str) -> Iterator[Case]:
    """Yield cases after a linear layer of a ViT with patches of 16, at 640 px, batch 5, and at 1024 px, batch 8."""
    if scale == "quick":
        yield Size("small adapter", 50, 32, 8).case()
        yield Size("small chain of 2", 50, 32, 8, 2).case()
        return
    sizes = vit_sizes(scale)
    largest = max(rows for _, _, _, rows in sizes)
    for model, channels, pixels, rows in sizes:
        for width in (64, 128, 256) if rows == largest else (64,):
            yield Size(f"{model}, {pixels}, bottleneck {width}", rows, channels, width).case()
        if rows == largest:
            yield Size(f"{model}, {pixels}, 3 adapters of bottleneck 64 in a chain", rows, channels, 64, 3).case()
