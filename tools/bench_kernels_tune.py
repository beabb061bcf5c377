"""Search for a fused product that is faster than the library's product with a separate update, for each shape."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator
from itertools import product

import torch
import torch.nn.functional as F
from bench_kernels_measure import Settings, time_rounds
from torch import Tensor
from vispeft_kernels.launch import Config, capability
from vispeft_kernels.lora import configs, triton_impl
from vispeft_kernels.lora.options import LoraOptions
from vispeft_kernels.lora.triton_impl import LowRankProduct

ROWS = 32768
WIDTHS = (192, 384, 768, 1024)  # of ViTs from tiny to large
RANKS = (16, 32, 64)
MARGIN = 0.98  # a fused product must take less than this share of the time to be chosen


def shapes(arch: int) -> Iterator[configs.Shape]:
    """Yield every linear layer of these ViTs: forward, and backward with and without dropout."""
    for width, rank in product(WIDTHS, RANKS):
        for features, columns in ((width, 3 * width), (width, width), (width, 4 * width), (4 * width, width)):
            yield configs.Shape(arch, "forward", features, columns, rank, "bfloat16")
            for has_dropout in (False, True):
                yield configs.Shape(arch, "backward", columns, features, rank, "bfloat16", has_dropout)


def tune(device: torch.device) -> None:
    """Measure every candidate at every shape and write the fastest ones to the table of the kernels."""
    if device.type != "cuda":
        raise SystemExit("`--tune` needs a CUDA device, on which the kernels run.")
    settings = Settings(device, torch.bfloat16, rounds=5, round_ms=5, graphs=False)
    found: dict[str, int] = json.loads(configs.MEASURED.read_text()) if configs.MEASURED.exists() else {}
    for shape in shapes(capability(device)):
        runs = candidates(shape, device)
        times = {name: statistics.median(each) for name, each in time_rounds(runs, settings).items()}
        separate = times.pop("separate")
        best = min(times, key=lambda name: times[name])
        ratio = times[best] / separate
        print(f"{shape.key:60} separate {separate:.4f} ms, candidate {best} {times[best]:.4f} ms, {ratio:.2f}")
        found.pop(shape.key, None)
        if times[best] < MARGIN * separate:
            found[shape.key] = int(best)
    configs.MEASURED.write_text(json.dumps(dict(sorted(found.items())), indent=1) + "\n")


def candidates(shape: configs.Shape, device: torch.device) -> dict[str, Callable[[], Tensor]]:
    """Return the library's product with a separate update as `separate`, and each fused product by its number."""
    dtype = getattr(torch, shape.dtype)
    x = torch.randn(ROWS, shape.features, device=device).to(dtype)
    hidden = torch.randn(ROWS, shape.rank, device=device).to(dtype)
    options = LoraOptions(1.0, dropout=0.1, seed=triton_impl.new_seed(x)) if shape.has_dropout else LoraOptions(1.0)
    is_backward = shape.way == "backward"
    sizes = (shape.features, shape.columns) if is_backward else (shape.columns, shape.features)
    weight = torch.randn(sizes, device=device).to(dtype)
    factor = torch.randn((shape.rank, shape.columns) if is_backward else (shape.columns, shape.rank), device=device)
    low_rank = LowRankProduct(hidden, factor.to(dtype), options, by_rank=is_backward)

    def separate() -> Tensor:
        y = x @ weight if is_backward else F.linear(x, weight)
        if shape.has_dropout:
            return triton_impl.expand_(y, low_rank)
        return y.addmm_(hidden, low_rank.factor if is_backward else low_rank.factor.t())

    def fused(config: Config) -> Callable[[], Tensor]:
        return lambda: triton_impl.fused_linear(x, weight, None, low_rank, config)

    products = configs.products(shape.rank, dtype, shape.arch, shape.has_dropout)
    return {"separate": separate, **{str(index): fused(config) for index, config in enumerate(products)}}
