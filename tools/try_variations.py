#!/usr/bin/env python
"""Train the bundled base in full on a real set with variations of the recipe and several seeds; keep the metrics.

    python tools/try_variations.py --data DIR/fruits-nuts --out docs/results/variations

The variations are the colour of the padding, the range of the scale jitter, and a smaller rate for the backbone. The
folder contains `train.json`, `val.json` and `images/`. The `summary.json` of each run is copied to
`--out/<variation>/seed<n>.json`. Existing runs are not repeated. One thread is used.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
from pathlib import Path
from typing import Any

import torch
from run_recipes import own

from vispeft.config import load_config
from vispeft.data.loading import loader
from vispeft.data.loading.collate import collate
from vispeft.engine import RunDirectory, train_run
from vispeft.structures import Batch
from vispeft.training.arithmetic import request_reproducible_arithmetic

ROOT = Path(__file__).resolve().parents[1]
GREY = 128.0
# name -> overrides
VARIATIONS: dict[str, list[str]] = {
    "as it is": [],
    "grey padding": [],
    "narrow jitter": ["data.augment.scale=[0.8,1.25]"],
    "wide jitter": ["data.augment.scale=[0.1,2.0]"],
    "slow backbone": ['train.regions={"backbone": {lr_scale: 0.1}, "@class_head": {lr_scale: 10}}'],
}


def collate_on_grey(samples: Any, **options: Any) -> Batch:
    """Return the batch of `collate` with grey padding instead of the mean colour."""
    batch = collate(samples, **options)
    mean, std = (torch.tensor(tuple(options[key]))[:, None, None] for key in ("pixel_mean", "pixel_std"))
    for image, sample in zip(batch.images, samples, strict=True):
        _, height, width = sample.image.shape
        image[:, height:, :] = (GREY - mean) / std
        image[:, :, width:] = (GREY - mean) / std
    return batch


def train(name: str, seed: int, args: argparse.Namespace) -> None:
    """Train one run and keep its summary."""
    keys = [f"train.steps={args.steps}", f"train.eval_every={args.steps}", f"train.seed={seed}", "train.device=cpu"]
    for split in ("train", "val"):
        keys += [
            f"data.{split}.annotations={args.data / f'{split}.json'}",
            f"data.{split}.images={args.data / 'images'}",
        ]
    config = load_config(ROOT / "configs" / "bundled_full.yaml", [*keys, *own(args.data.name), *VARIATIONS[name]])
    run = args.runs / name.replace(" ", "_") / f"seed{seed}"
    shutil.rmtree(run, ignore_errors=True)
    loader.collate = collate_on_grey if name == "grey padding" else collate  # type: ignore[assignment]
    train_run(config, RunDirectory(run))
    kept = args.out / name / f"seed{seed}.json"
    kept.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(run / "summary.json", kept)


def main() -> None:
    """Parse the command line, run the missing runs, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "variations")
    parser.add_argument("--runs", type=Path, default=Path("runs/variations"))
    parser.add_argument("--variations", nargs="+", default=list(VARIATIONS), choices=list(VARIATIONS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=100)
    args = parser.parse_args()
    request_reproducible_arithmetic()
    torch.set_num_threads(1)
    for seed in args.seeds:
        for name in args.variations:
            if not (args.out / name / f"seed{seed}.json").exists():
                train(name, seed, args)
    print("| variation | mask AP by seed | mean | AP50, mean |\n|---|---|---|---|")
    for name in VARIATIONS:
        files = sorted((args.out / name).glob("seed*.json"))
        metrics = [json.loads(path.read_text())["segm"] for path in files]
        if metrics:
            shown = ", ".join(f"{m['AP']:.3f}" for m in metrics)
            means = [statistics.mean(m[key] for m in metrics) for key in ("AP", "AP50")]
            print(f"| {name} | {shown} | {means[0]:.3f} | {means[1]:.3f} |")


if __name__ == "__main__":
    main()
