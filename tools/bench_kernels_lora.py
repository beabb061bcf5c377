"""Cases of `bench_kernels.py`: the linear layers of a ViT block with the low-rank update on all, or on qkv alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from bench_kernels_measure import PASSES, Bound, Case, Entry, Tensors, compiled, plain, vit_sizes
from torch import Tensor, nn
from vispeft_kernels import lora_linear
from vispeft_kernels.lora.autograd import Inputs, lora
from vispeft_kernels.lora.options import LoraOptions

SCALE = 0.5
MAPS = {"qkv": (1, 3), "proj": (1, 1), "fc1": (1, 4), "fc2": (4, 1)}  # inputs and outputs in widths of the model
Update = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Block:
    """The linear layers of one block. rows: tokens of the batch"""

    name: str
    rows: int
    width: int
    rank: int
    sites: tuple[str, ...] = tuple(MAPS)
    dropout: float = 0.0

    def sizes(self, site: str) -> tuple[int, int]:
        return MAPS[site][0] * self.width, MAPS[site][1] * self.width

    def draw(self) -> Tensors:
        """Return input x, weight w and bias c of each layer, and the factors a and b of each site."""
        generator = torch.Generator().manual_seed(0)
        tensors = {}
        for site in MAPS:
            inputs, outputs = self.sizes(site)
            shapes = {"x": (self.rows, inputs), "w": (outputs, inputs), "c": (outputs,)}
            if site in self.sites:
                shapes |= {"a": (self.rank, inputs), "b": (outputs, self.rank)}
            for name, shape in shapes.items():
                unit = 1.0 if name == "x" else shape[-1] ** -0.5
                tensors[f"{name}_{site}"] = unit * torch.randn(shape, generator=generator)
        return tensors

    def trained(self) -> list[str]:
        return [f"x_{site}" for site in MAPS] + [f"{name}_{site}" for site in self.sites for name in "ab"]

    def min_work(self) -> dict[str, tuple[float, float]]:
        """Return elements moved and operations of fused kernels: y is written once, its gradient is read twice."""
        forward = [0.0, 0.0]
        backward = [0.0, 0.0]
        for site in MAPS:
            k, n = self.sizes(site)
            rank = self.rank if site in self.sites else 0
            once = self.rows * (k + n) + k * n
            forward[0] += once
            backward[0] += once + (self.rows * (k + n) if rank else 0)
            forward[1] += 2 * self.rows * (k * n + rank * (k + n))
            backward[1] += 2 * self.rows * (k * n + 2 * rank * (k + n))
        return {
            PASSES[0]: (forward[0], forward[1]),
            PASSES[1]: (forward[0] + backward[0], forward[1] + backward[1]),
        }


def by(update: Update, block: Block) -> Callable[..., list[Tensor]]:
    """Return a function that runs all layers of a block with an update. Weights and biases are frozen."""

    def run(**t: Tensor) -> list[Tensor]:
        outs = []
        for site in MAPS:
            x, w, c = t[f"x_{site}"], t[f"w_{site}"].detach(), t[f"c_{site}"].detach()
            outs.append(update(x, w, c, t[f"a_{site}"], t[f"b_{site}"]) if site in block.sites else F.linear(x, w, c))
        return outs

    return run


def frozen(block: Block) -> Entry:
    """Return the entry of the frozen layers alone, with the gradient of their inputs."""

    def run(**t: Tensor) -> list[Tensor]:
        return [F.linear(t[f"x_{site}"], t[f"w_{site}"].detach(), t[f"c_{site}"].detach()) for site in MAPS]

    return Entry(plain(run, *(f"x_{site}" for site in MAPS)), is_limit=True)


def peft_library(block: Block) -> Callable[[Tensors], Bound]:
    """Return a `bind` of the layers with LoRA by Hugging Face's `peft`, with the same factors."""

    def bind(tensors: Tensors) -> Bound:
        import peft

        base = nn.ModuleDict({site: nn.Linear(*block.sizes(site), device="meta") for site in MAPS})
        base.to_empty(device=tensors["x_qkv"].device).to(tensors["x_qkv"].dtype)
        config = peft.LoraConfig(
            r=block.rank,
            lora_alpha=SCALE * block.rank,
            lora_dropout=block.dropout,
            target_modules=list(block.sites),
            init_lora_weights=True,
        )
        model = peft.inject_adapter_in_model(config, base)
        leaves = [tensors[f"x_{site}"] for site in MAPS]
        with torch.no_grad():
            for site in MAPS:
                map_ = model[site]
                inner = map_.get_base_layer() if site in block.sites else map_
                inner.weight.copy_(tensors[f"w_{site}"])
                inner.bias.copy_(tensors[f"c_{site}"])
                inner.requires_grad_(False)
                if site in block.sites:
                    for name, part in (("a", map_.lora_A), ("b", map_.lora_B)):
                        weight = part["default"].weight
                        weight.data = tensors[f"{name}_{site}"].detach().clone()
                        leaves.append(weight)
        frozen = list(model.parameters())
        return Bound(lambda: [model[site](tensors[f"x_{site}"]) for site in MAPS], leaves, frozen)

    return bind


def updates(dropout: float) -> dict[str, Update]:
    """Return implementations of a frozen linear layer with the low-rank update, by name."""

    def eager(x: Tensor, w: Tensor, c: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return F.linear(x, w, c) + SCALE * F.linear(F.linear(F.dropout(x, dropout), a), b)

    def in_torch(x: Tensor, w: Tensor, c: Tensor, a: Tensor, b: Tensor) -> Tensor:
        with torch.no_grad():
            y = F.linear(x, w, c)
        return lora(Inputs(y, x, w, c, a, b), LoraOptions(SCALE, dropout=dropout), "torch")

    def ours(x: Tensor, w: Tensor, c: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return lora_linear(x, w, c, a, b, SCALE, dropout=dropout)

    return {"eager": eager, "in torch": in_torch, "vispeft": ours}


def case_of(block: Block) -> Case:
    trained, ways, random = block.trained(), updates(block.dropout), block.dropout > 0

    def entry(bind: Callable[[Tensors], Bound], ours: bool = False) -> Entry:
        return Entry(bind, is_ours=ours, is_random=random)

    entries = {
        "frozen": frozen(block),
        "eager": entry(plain(by(ways["eager"], block), *trained)),
        "compile": entry(compiled(by(ways["eager"], block), *trained)),
        "peft": entry(peft_library(block)),
        # dropout masks come from a separate generator, which a CUDA graph does not register
        "vispeft, in torch": Entry(
            plain(by(ways["in torch"], block), *trained), is_ours=True, is_random=random, is_captured=not random
        ),
        "vispeft": entry(plain(by(ways["vispeft"], block), *trained), True),
        "vispeft, compiled": entry(compiled(by(ways["vispeft"], block), *trained), True),
    }
    return Case("lora", block.name, block.draw, entries, "eager", "frozen", block.min_work())


def cases(scale: str) -> Iterator[Case]:
    """Yield cases of ViT blocks with patches of 16, at 640 px, batch 5, and at 1024 px, batch 8."""
    if scale == "quick":
        yield case_of(Block("small block", 50, 32, 4))
        yield case_of(Block("small block, dropout", 50, 32, 4, dropout=0.1))
        return
    largest = 8 * 64 * 64 if scale == "gpu" else 40 * 40
    for model, width, pixels, rows in vit_sizes(scale):
        yield case_of(Block(f"{model}, {pixels}, all four maps, rank 16", rows, width, 16))
        if rows == largest:
            yield case_of(Block(f"{model}, {pixels}, qkv, rank 16", rows, width, 16, ("qkv",)))
    yield case_of(Block(f"ViT-B, {largest:,} tokens, all four maps, rank 64", largest, 768, 64))
    yield case_of(Block(f"ViT-B, {largest:,} tokens, all four maps, rank 16, dropout", largest, 768, 16, dropout=0.1))
