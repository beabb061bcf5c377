#!/usr/bin/env python
"""Measure what frozen weights in lower precisions cost in accuracy: one training run for each precision.

    python tools/bench_quantized_ap.py --data DIR/fruits-nuts --json tools/results/quantized_ap_cpu.json

DIR/fruits-nuts contains `train.json`, `val.json` and `images/`. Every run is `vispeft train configs/bundled_lora.yaml`
with `model.frozen_precision`, evaluated once at its end. `bf16` trains under autocast, the others in float32. With one
seed, differences of a few points of AP are within the spread of the seeds.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from vispeft.training.processor import cpu_info

ROOT = Path(__file__).resolve().parents[1]
PRECISIONS = ("fp32", "bf16", "int8", "nf4")


def measure(precision: str, data: Path, runs: Path, steps: int, seed: int) -> dict[str, float]:
    """Train with frozen weights in a precision. Returns mask AP, box AP and costs."""
    run = runs / precision
    keys = [f"model.frozen_precision={precision}", f"train.steps={steps}", f"train.seed={seed}"]
    keys += [f"train.eval_every={steps}", "train.device=cpu"]
    for split in ("train", "val"):
        keys += [f"data.{split}.annotations={data / f'{split}.json'}", f"data.{split}.images={data / 'images'}"]
    config = ROOT / "configs" / "bundled_lora.yaml"
    command = [sys.executable, "-m", "vispeft", "train", str(config), *keys, "--out", str(run)]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    summary = json.loads((run / "summary.json").read_text())
    return {
        "mask_ap": round(summary["segm"]["AP"], 4),
        "mask_ap50": round(summary["segm"]["AP50"], 4),
        "box_ap": round(summary["bbox"]["AP"], 4),
        "train_s": round(summary["train_seconds"], 1),
        "peak_mb": round(summary["peak_memory_bytes"] / 1e6, 1),
    }


def main() -> None:
    """Run every precision, print its measurements and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the set")
    parser.add_argument("--json", type=Path, help="file to write")
    parser.add_argument("--runs", type=Path, default=Path("runs/quantized"), help="folder of the run directories")
    parser.add_argument("--precisions", nargs="+", default=list(PRECISIONS), choices=PRECISIONS)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    results = {}
    for precision in args.precisions:
        results[precision] = measure(precision, args.data, args.runs, args.steps, args.seed)
        print(f"{precision:5} {results[precision]}", flush=True)
        if args.json:
            machine = {"cpu": cpu_info("model name"), "torch": torch.__version__, "threads": 1}
            setting = {"data": args.data.name, "steps": args.steps, "seed": args.seed}
            args.json.write_text(json.dumps({"machine": machine, **setting, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
