#!/usr/bin/env python
"""Compare training steps with compiled blocks (`train.compile`) and without, on the models of bench_step.py.

    python tools/bench_compile.py                                       # timm ViT-S/16, 224 px, batch 8, rank 8
    python tools/bench_compile.py --model mask_dino --methods lora lora_everywhere full --json FILE
    python tools/bench_compile.py --model mask_dino --backbone vit_large_patch16_224 --size base --image-size 1024 \
        --batch 2 --precision bf16 --device cuda

Both models of a method are in one process and take their steps in turn, so that a slow phase of the machine affects
both. Seconds are processor time of one thread on the CPU, which excludes other programs, and wall time with an idle
device on a GPU; the median over the steps. `first` is the wall time of the first compiled step, in which everything is
compiled. `difference` is the largest of a gradient, relative to the largest entry of that gradient.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from bench_step import CpuMeter, CudaMeter
from bench_step_models import RANK, add_model_options, build_mask_dino, build_vit, mask_dino_plans, vit_plans
from torch import Tensor, nn
from torch._dynamo.utils import counters

from vispeft.training.compilation import compile_blocks
from vispeft.training.processor import describe_cpu

OPTIONS = ("model", "backbone", "size", "image_size", "batch", "device", "precision", "steps", "backend")


@dataclass(frozen=True)
class Comparison:
    """Measurements of one method.

    blocks: compiled blocks; graphs: of them that were compiled; graph_breaks: in them
    first_s, plain_s, compiled_s: seconds
    difference: of the gradients
    """

    method: str
    blocks: int
    graphs: int
    graph_breaks: int
    first_s: float
    plain_s: float
    compiled_s: float
    difference: float

    @property
    def ratio(self) -> float:
        """Time of a compiled step over that of a plain one."""
        return self.compiled_s / self.plain_s


def compare(method: str, args: argparse.Namespace) -> Comparison:
    """Measure the steps of both models of a method."""
    meter = CudaMeter() if args.device == "cuda" else CpuMeter()
    build = build_mask_dino if args.model == "mask_dino" else build_vit
    torch.manual_seed(0)
    plain = build(method, args)
    torch.manual_seed(0)
    compiled = build(method, args)
    torch._dynamo.reset()
    counters.clear()
    blocks = compile_blocks(compiled.model, backend=args.backend)
    began = time.monotonic()
    found = gradients(compiled.model, compiled.loss)
    first = time.monotonic() - began
    difference = largest_difference(gradients(plain.model, plain.loss), found)
    # a second step compiles what depends on the memory layout of gradients
    gradients(compiled.model, compiled.loss)
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(args.steps):
        for measured, times in zip((plain, compiled), seconds, strict=True):
            start = meter.now()
            gradients(measured.model, measured.loss)
            times.append(meter.now() - start)
    plain_s, compiled_s = (round(statistics.median(times), 4) for times in seconds)
    return Comparison(
        method,
        blocks,
        counters["stats"]["unique_graphs"],
        sum(counters["graph_break"].values()),
        round(first, 1),
        plain_s,
        compiled_s,
        float(f"{difference:.1e}"),
    )


def gradients(model: nn.Module, loss: Callable[[], Tensor]) -> dict[str, Tensor]:
    """Return the gradients of one forward and backward pass, which draws the same random numbers each time."""
    model.zero_grad(set_to_none=True)
    torch.manual_seed(1)
    loss().backward()  # type: ignore[no-untyped-call]
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def largest_difference(wanted: dict[str, Tensor], found: dict[str, Tensor]) -> float:
    """Return the largest difference of a gradient, relative to its largest entry."""
    if wanted.keys() != found.keys():
        raise SystemExit(f"Other parameters get a gradient: {sorted(wanted.keys() ^ found.keys())[:3]}.")
    return max(
        ((found[name] - grad).abs().max() / grad.abs().max().clamp_min(1e-12)).item() for name, grad in wanted.items()
    )


def table(found: list[Comparison]) -> str:
    """Return the measurements as text for the terminal."""
    width = max(len("method"), *(len(one.method) for one in found))
    lines = [
        f"{'method':{width}} {'blocks':>6} {'graphs':>6} {'breaks':>6} {'first s':>8} {'plain s':>8} compiled ratio"
    ]
    lines += [
        f"{one.method:{width}} {one.blocks:>6} {one.graphs:>6} {one.graph_breaks:>6} {one.first_s:>8.1f} "
        f"{one.plain_s:>8.3f} {one.compiled_s:>8.3f} {one.ratio:>5.2f}"
        for one in found
    ]
    return "\n".join(lines)


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_options(parser)
    parser.add_argument("--methods", nargs="+", default=["lora", "adapter", "full"])
    parser.add_argument("--backend", default="inductor", help="of torch.compile")
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--json", type=Path, help="write all measurements to this file")
    return parser.parse_args()


def main() -> None:
    """Compare each method, print and write."""
    args = parse_arguments()
    known = mask_dino_plans(1) if args.model == "mask_dino" else vit_plans()
    able = [method for method, plan in known.items() if plan is not None]
    unknown = [method for method in args.methods if method not in able]
    if unknown:
        sys.exit(f"`--methods` must be some of {', '.join(able)}, but has {', '.join(unknown)}.")
    if args.device == "cpu":
        torch.set_num_threads(1)
    load_before = os.getloadavg()[0]
    found = [compare(method, args) for method in args.methods]
    print(table(found))
    if args.json:
        report = {
            "command": " ".join(["python", "tools/bench_compile.py", *sys.argv[1:]]),
            "machine": torch.cuda.get_device_name() if args.device == "cuda" else describe_cpu(),
            # mean number of running or waiting processes in the last minute; more than cores is a busy machine
            "load_average": {"before": round(load_before, 1), "after": round(os.getloadavg()[0], 1)},
            **{name: getattr(args, name) for name in OPTIONS},
            "rank": RANK,
            "versions": {name: version(name) for name in ("torch", "timm")},
            "methods": [{**asdict(one), "ratio": round(one.ratio, 3)} for one in found],
        }
        args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
