#!/usr/bin/env python
"""Measure the cost of reproducible arithmetic on a CPU: processor time for several values of `MKL_CBWR`.

    python tools/bench_arithmetic.py --json tools/results/arithmetic_cpu.json

Each value is measured in a new process per round, because MKL reads it once; rounds are interleaved. One thread is
used. Tasks are a matrix product and attention of the size of a ViT-S, and a training step of a timm ViT-S/16 at 224 px,
batch 2.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

MODES = ("unset", "AUTO", "AUTO,STRICT", "COMPATIBLE")


def measure() -> dict[str, float | bool | str]:
    """Return median seconds of processor time of each task in this process, and the outcome of `is_reproducible`."""
    import timm
    import torch
    from torch.nn import functional as F

    from vispeft.training.arithmetic import is_reproducible
    from vispeft.training.processor import cpu_info

    torch.set_num_threads(1)
    torch.manual_seed(0)
    x, weight, q = torch.randn(1576, 384), torch.randn(1536, 384), torch.randn(8, 6, 197, 64)
    model = timm.create_model("vit_small_patch16_224", num_classes=10)
    images = torch.randn(2, 3, 224, 224)

    def step() -> None:
        model(images).square().sum().backward()

    return {
        "product": _median(lambda: x @ weight.T, 30),
        "attention": _median(lambda: F.scaled_dot_product_attention(q, q, q), 30),
        "vit_small_step": _median(step, 5),
        "is_reproducible": is_reproducible(),
        "cpu": cpu_info("model name"),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
    }


def _median(task: Callable[[], object], count: int) -> float:
    times = []
    for _ in range(count + 1):
        began = time.process_time()
        task()
        times.append(time.process_time() - began)
    return statistics.median(times[1:])


def run_child(mode: str) -> dict[str, float | bool | str]:
    """Return the measurements of a new process with one value of the variable."""
    environment = {key: value for key, value in os.environ.items() if key != "MKL_CBWR"}
    if mode != "unset":
        environment["MKL_CBWR"] = mode
    command = [sys.executable, __file__, "--child"]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    found: dict[str, float | bool | str] = json.loads(done.stdout)
    return found


def main() -> None:
    """Parse the command line, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write all measurements to this file")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(measure()))
        return
    rounds = [{mode: run_child(mode) for mode in MODES} for _ in range(args.rounds)]
    tasks = ("product", "attention", "vit_small_step")
    medians = {
        mode: {task: statistics.median(float(r[mode][task]) for r in rounds) for task in tasks} for mode in MODES
    }
    ratios = {mode: {task: medians[mode][task] / medians["unset"][task] for task in tasks} for mode in MODES}
    machine = {key: rounds[0]["unset"][key] for key in ("cpu", "cpu_capability", "torch")}
    reproducible = {mode: all(bool(r[mode]["is_reproducible"]) for r in rounds) for mode in MODES}
    for mode in MODES:
        shown = "  ".join(f"{task} {ratios[mode][task]:.2f}" for task in tasks)
        print(f"{mode:12} reproducible: {reproducible[mode]!s:6} time against unset: {shown}")
    if args.json is not None:
        document = {
            "machine": machine,
            "is_reproducible": reproducible,
            "ratios": ratios,
            "seconds": medians,
            "rounds": rounds,
        }
        args.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
