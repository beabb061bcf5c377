#!/usr/bin/env python
"""Compare the memory that `vispeft plan` predicts with that of real training steps on the CPU.

    python tools/bench_plan.py --json tools/results/plan_cpu.json

Each configuration is measured in its own process with one thread, on the batch that the prediction assumes. `predicted`
is the peak of all tensors in a training step. `tensors` is the measured one: weights and optimizer state, and the
maximum of what torch's allocator gave out in a step after two others, from the profiler's allocation events. `process`
is the peak resident memory of the process, Python, libraries and gaps in the heap included.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

CONFIGS = Path(__file__).parents[1] / "configs"
VIT_S = ["model.backbone=vit_small_patch16_224", "model.weights=none", "model.image_size=256"]
FULL = ["peft.deltas={}", "peft.train=['**']"]
RECOMPUTED = "model.activation_checkpointing=true"
CASES: dict[str, list[str]] = {
    "bundled, head only": ["bundled_head"],
    "bundled, LoRA": ["bundled_lora"],
    "bundled, LoRA, recomputed": ["bundled_lora", RECOMPUTED],
    "bundled, adapters": ["bundled_adapter"],
    "bundled, full": ["bundled_full"],
    "ViT-S, LoRA, batch 2": ["vit_b_lora", *VIT_S, "train.batch_size=2"],
    "ViT-S, LoRA, batch 4": ["vit_b_lora", *VIT_S, "train.batch_size=4"],
    "ViT-S, LoRA, batch 4, recomputed": ["vit_b_lora", *VIT_S, "train.batch_size=4", RECOMPUTED],
    "ViT-S, full, batch 2": ["vit_b_lora", *VIT_S, *FULL, "train.batch_size=2"],
    "ViT-S, full, batch 4": ["vit_b_lora", *VIT_S, *FULL, "train.batch_size=4"],
    "ViT-S, full, batch 4, recomputed": ["vit_b_lora", *VIT_S, *FULL, "train.batch_size=4", RECOMPUTED],
}


def measure(words: list[str]) -> dict[str, Any]:
    """Return predicted and measured bytes of a configuration."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    from vispeft import peft
    from vispeft.config import load_config
    from vispeft.engine import estimate
    from vispeft.engine.attach import attach
    from vispeft.engine.estimation.base_model import base_without_weights
    from vispeft.engine.estimation.simulated_step import make_batch
    from vispeft.engine.settings import criterion_of, optimizer_of
    from vispeft.training.memory import keep_freed_memory, peak_memory_bytes
    from vispeft.training.step import LossModule, SealedBatch

    torch.set_num_threads(1)
    keep_freed_memory()
    config = load_config(CONFIGS / f"{words[0]}.yaml", words[1:])
    base = base_without_weights(config)
    attach(base.model, base.config)
    peft.train_mode(base.model)
    step = LossModule(base.model, criterion_of(base.config, base.model))
    optimizer = optimizer_of(base.config.train, base.model)
    batch = SealedBatch(make_batch(base.config, base.model, base.num_objects))

    def train() -> None:
        torch.stack(list(step(batch).values())).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    train()
    train()
    process = peak_memory_bytes(torch.device("cpu"))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        train()
    own = (*base.model.parameters(), *base.model.buffers())
    moments = [value for state in optimizer.state.values() for value in state.values()]
    tensors = sum(tensor.nbytes for tensor in (*own, *moments)) + most_allocated(profiled)
    predicted = estimate(config)
    return {
        "predicted": predicted.peak_bytes,
        "tensors": tensors,
        "ratio": round(predicted.peak_bytes / tensors, 3),
        "predicted_process": predicted.process_bytes,
        "process": process,
        "process_ratio": round(predicted.process_bytes / process, 3),
    }


def most_allocated(profiled: Any) -> int:
    """Return the maximum of the bytes in use by what was allocated in a profile."""
    from torch._C._profiler import _EventType

    events: list[tuple[int, int]] = []
    waiting = list(profiled.profiler.kineto_results.experimental_event_tree())
    while waiting:
        event = waiting.pop()
        waiting += event.children
        if event.tag == _EventType.Allocation:
            events.append((event.start_time_ns, event.extra_fields.alloc_size))
    now = most = 0
    for _, size in sorted(events, key=lambda event: event[0]):
        now += size
        most = max(most, now)
    return most


def main() -> None:
    """Measure every case in its own process and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES), metavar="CASE")
    parser.add_argument("--json", type=Path, help="write all results to this file")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(measure(CASES[args.child])))
        return
    found = {}
    for name in args.cases:
        command = [sys.executable, __file__, "--child", name]
        run = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        if run.returncode:
            sys.exit(f"{name}: {run.stderr.strip()}")
        found[name] = json.loads(run.stdout.splitlines()[-1])
        one = found[name]
        print(
            f"{name:34} predicted {one['predicted'] / 2**20:7.0f} MB, measured {one['tensors'] / 2**20:7.0f} MB, ratio "
            f"{one['ratio']:.3f}; process {one['process'] / 2**20:6.0f} MB, ratio {one['process_ratio']:.3f}",
            flush=True,
        )
    if args.json:
        report = {
            "command": "python tools/bench_plan.py --json tools/results/plan_cpu.json",
            "unit": "bytes",
            "threads": 1,
            "versions": {name: version(name) for name in ("torch", "timm")},
            "overrides": {name: CASES[name] for name in found},
            "cases": found,
        }
        args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
