#!/usr/bin/env python
"""Measure frozen weights in lower precisions: bytes, output error, time and memory of a LoRA step.

    python tools/bench_quantized.py --json tools/results/quantized_cpu.json

Models are a timm ViT-S/16 with random weights at 224 px, batch 8, and the bundled base at 128 px, batch 4. LoRA of rank
8 is at every fused query-key-value projection. Each measurement is a process of its own with one thread; the time is
the processor time of the median step. `bf16` runs under autocast, the others in float32. The error of the output is
relative to that of float32 weights: the norm of the difference over the norm of the output.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

import vispeft as vp
from vispeft.peft.quantization.frozen_precision import FrozenPrecision, set_frozen_precision
from vispeft.training.processor import cpu_info

PRECISIONS: tuple[FrozenPrecision, ...] = ("fp32", "bf16", "int8", "nf4")
MODELS = ("vit_small", "bundled")
STEPS = 3


def build(name: str) -> tuple[nn.Module, Tensor, str]:
    """Return a model, its input and the pattern of its fused projections."""
    torch.manual_seed(0)
    if name == "vit_small":
        model: nn.Module = timm.create_model("vit_small_patch16_224", num_classes=10)
        return model.eval(), torch.randn(8, 3, 224, 224), "blocks.*.attn.qkv"
    return vp.load_bundled().eval(), torch.randn(4, 3, 128, 128), "@encoder.qkv"


def output(model: nn.Module, images: Tensor) -> Tensor:
    """Return the logits, or the mask features of a segmentation model."""
    found = model(images)
    return (found if isinstance(found, Tensor) else found.mask_features).float()


def measure(name: str, precision: FrozenPrecision) -> dict[str, float]:
    """Return the measurements of one model in one precision, in this process."""
    torch.set_num_threads(1)
    model, images, pattern = build(name)
    roles = vp.roles_for(model) if name == "bundled" else None
    with torch.no_grad():
        wanted = output(model, images)
    set_frozen_precision(model, precision, trained=(), roles=roles)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")
    with torch.no_grad(), autocast:
        error = (output(model, images) - wanted).norm() / wanted.norm()
    size = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    vp.inject(model, vp.Plan({pattern: vp.LoRA(rank=8)}), roles=roles)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    Path("/proc/self/clear_refs").write_text("5")
    times = []
    for _ in range(STEPS + 1):
        began = time.process_time()
        with autocast:
            loss = output(model, images).square().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.process_time() - began)
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))
    return {
        "base_mb": round(size / 2**20, 2),
        "relative_error": round(float(error), 5),
        "step_s": round(statistics.median(times[1:]), 3),
        "peak_mb": round(peak, 1),
    }


def main() -> None:
    """Measure every model in every precision, print the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file to write")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(measure(*args.child)))
        return
    results: dict[str, dict[str, dict[str, float]]] = {}
    for name in MODELS:
        for precision in PRECISIONS:
            command = [sys.executable, __file__, "--child", name, precision]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            run = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
            results.setdefault(name, {})[precision] = json.loads(run.stdout.splitlines()[-1])
            print(f"{name:10} {precision:5} {results[name][precision]}", flush=True)
    if args.json:
        machine = {"cpu": cpu_info("model name"), "torch": torch.__version__, "threads": 1, "steps": STEPS}
        args.json.write_text(json.dumps({"machine": machine, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
