"""Measure the time saved by kept features: trials of a sweep without them, in memory, and in a directory.

    python tools/bench_cache.py [--images 16] [--steps 24] [--trials 3] [--json tools/results/feature_cache_cpu.json]

Trials of the bundled base on synthetic images differ in their learning rate, as in a sweep. They train the heads alone
(split point after the pixel decoder), LoRA in the pixel decoder (after the backbone), or adapters in the last two
blocks of the ViT (after the fourth). Times are processor seconds of whole runs in one thread: building the model,
training, evaluation, reports. Every run with kept features must give the same adapter as the run without, to the bit.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from vispeft.config import parse_config
from vispeft.engine import RunDirectory, train_run
from vispeft.synthetic import write_splits
from vispeft.training.feature_cache.store import FeatureMemory
from vispeft.training.processor import describe_cpu

ADAPTER = {"method": "adapter", "width": 20}
PLANS: dict[str, dict[str, Any]] = {
    "heads": {},
    "lora in the pixel decoder": {"@pixel_decoder.value_proj": {"method": "lora", "rank": 8}},
    "adapters in the last two blocks": {"@encoder.proj[4:] | @encoder.fc2[4:]": ADAPTER},
}
RATES = (1e-3, 2e-3, 5e-4, 3e-3, 2e-4, 4e-3)


@dataclass(frozen=True)
class Trial:
    """One run. cpu_s: processor time of the whole run; train_s, evaluate_s: wall time, from its summary"""

    cpu_s: float
    wall_s: float
    train_s: float
    evaluate_s: float
    segm_ap: float
    feature_cache: dict[str, Any] | None


def configuration(folder: Path, plan: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """Return the configuration that the trials of a plan share."""
    return {
        "model": {"weights": "bundled", "image_size": args.size},
        "peft": {"deltas": plan, "train": ["@heads"]},
        "data": {
            **{
                side: {"annotations": str(folder / f"{side}.json"), "images": str(folder / "images")}
                for side in ("train", "val")
            },
            "augment": {"variants": args.variants},
        },
        "train": {
            "steps": args.steps,
            "batch_size": args.batch,
            "eval_every": args.steps,
            "workers": 0,
            "device": "cpu",
            "log_every": 1,
        },
    }


def run_trial(base: dict[str, Any], rate: float, place: str, out: Path, memory: FeatureMemory) -> Trial:
    """Train one trial with `train.feature_cache: place`."""
    config = parse_config(base, [f"train.lr={rate}", f"train.feature_cache={place}"])
    began, began_wall = time.process_time(), time.monotonic()
    train_run(config, RunDirectory(out), memory=memory)
    cpu, wall = time.process_time() - began, time.monotonic() - began_wall
    summary = json.loads((out / "summary.json").read_text())
    times = (round(summary["train_seconds"], 2), round(summary["evaluate_seconds"], 2))
    return Trial(round(cpu, 2), round(wall, 2), *times, summary["segm"]["AP"], summary.get("feature_cache"))


def run_plan(folder: Path, name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Run the trials of one plan in each of the three ways and return the measurements."""
    base, rates = configuration(folder, PLANS[name], args), RATES[: args.trials]
    found: dict[str, list[Trial]] = {}
    runs = folder / "runs" / name.replace(" ", "_")
    for way, place in (("separate", "off"), ("memory", "memory"), ("directory", str(folder / "features"))):
        memory = FeatureMemory()
        found[way] = [run_trial(base, rate, place, runs / way / str(rate), memory) for rate in rates]
        print(f"{name}, {way}: {[trial.cpu_s for trial in found[way]]} s", flush=True)
    totals = {way: sum(trial.cpu_s for trial in trials) for way, trials in found.items()}
    return {
        "trials": {way: [asdict(trial) for trial in trials] for way, trials in found.items()},
        "cpu_s": {way: round(total, 2) for way, total in totals.items()},
        "speed_up": {way: round(totals["separate"] / totals[way], 2) for way in ("memory", "directory")},
        "speed_up_of_a_later_trial": {
            way: round(statistics.median(t.cpu_s for t in found["separate"]) / found[way][-1].cpu_s, 2)
            for way in ("memory", "directory")
        },
        "equal_to_the_bit": all(same(runs / "separate" / str(r), runs / way / str(r)) for r in rates for way in found),
    }


def same(one: Path, other: Path) -> bool:
    """Tell whether two runs ended with the same adapter, the same predictions and the same curves."""
    first, second = (load_file(path / "adapter.safetensors") for path in (one, other))
    tensors = first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
    files = ("predictions_val.json", "metrics.jsonl")
    return tensors and all((one / name).read_bytes() == (other / name).read_bytes() for name in files)


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=16, help="training images; half as many for validation")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--variants", type=int, default=2)
    parser.add_argument("--trials", type=int, default=3, choices=range(1, len(RATES) + 1))
    parser.add_argument("--plans", nargs="+", default=list(PLANS), choices=list(PLANS))
    parser.add_argument("--json", type=Path, help="write all measurements to this file")
    return parser.parse_args()


def main() -> None:
    """Run every plan and print the results."""
    args = parse_arguments()
    torch.set_num_threads(1)
    settings = {key: getattr(args, key) for key in ("images", "size", "steps", "batch", "variants", "trials")}
    report: dict[str, Any] = {
        "command": " ".join(["python", "tools/bench_cache.py", *sys.argv[1:]]),
        "machine": describe_cpu(),
        "threads": 1,
        **settings,
        "versions": {name: version(name) for name in ("torch", "timm")},
        "plans": {},
    }
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        write_splits(folder, num_train=args.images, num_val=args.images // 2, size=args.size, seed=0)
        for name in args.plans:
            report["plans"][name] = found = run_plan(folder, name, args)
            print(f"{name}: {found['speed_up']}, to the bit: {found['equal_to_the_bit']}", flush=True)
            if args.json:
                args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
