#!/usr/bin/env python
"""Adapt the bundled base to real COCO sets with every method at the same budget, and write the table of results.

    python tools/run_recipes.py --data DIR [--sets facades ...] [--methods full ...]

DIR contains one folder per set with `train.json`, `val.json` and `images/`. Every run is `vispeft train` with a recipe
of `configs/`, the overrides listed in `METHODS`, and the augmentation of the recipe of the set if `SETS` has one. Its
`summary.json` is copied to `--out/<set>/<method>.json`. Existing runs are not repeated. The table of all results is
written into `--page`, between its two marks.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

import yaml
from marked_pages import put

ROOT = Path(__file__).resolve().parents[1]
# name -> recipe and overrides
METHODS: dict[str, tuple[str, tuple[str, ...]]] = {
    "head only": ("bundled_head", ()),
    "LoRA, deformable": ("bundled_lora_deformable", ()),
    "LoRA": ("bundled_lora", ()),
    "adapters x 1": ("bundled_adapter", ()),
    "adapters x 2": ("bundled_adapter", ("count=2",)),
    "adapters x 3": ("bundled_adapter", ("count=3",)),
    "full": ("bundled_full", ()),
}
# set -> recipe with the augmentation for all methods
SETS = {"nuclei-histo": "nuclei_histo_lora", "facades": "facades_lora", "fruits-nuts": "fruits_nuts_lora"}


def command(name: str, data: Path, run: Path, steps: int, seed: int, extra: list[str]) -> list[str]:
    """Return the command line of one run."""
    recipe, overrides = METHODS[name]
    keys = [f"train.steps={steps}", f"train.seed={seed}"]
    for split in ("train", "val"):
        keys += [f"data.{split}.annotations={data / f'{split}.json'}", f"data.{split}.images={data / 'images'}"]
    for override in overrides:
        key, value = override.split("=")
        keys.append(f"peft.deltas={adapters(recipe, **{key: int(value)})}")
    config = ROOT / "configs" / f"{recipe}.yaml"
    return [sys.executable, "-m", "vispeft", "train", str(config), *keys, *own(data.name), *extra, "--out", str(run)]


def own(data_set: str) -> list[str]:
    """Return overrides for the augmentation of the recipe of a set; none for a set without a recipe."""
    if data_set not in SETS:
        return []
    augment = yaml.safe_load((ROOT / "configs" / f"{SETS[data_set]}.yaml").read_text())["data"].get("augment", {})
    return [f"data.augment.{key}={json.dumps(value)}" for key, value in augment.items()]


def adapters(recipe: str, count: int) -> str:
    """Return the deltas of a recipe with another number of adapters per site, as a YAML flow mapping."""
    deltas = yaml.safe_load((ROOT / "configs" / f"{recipe}.yaml").read_text())["peft"]["deltas"]
    return json.dumps({pattern: {**method, "count": count} for pattern, method in deltas.items()})


def table(out: Path) -> str:
    """Return a Markdown table per set with every summary under `out`."""
    lines = []
    for folder in sorted(p for p in out.iterdir() if p.is_dir()):
        summaries = {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}
        if summaries.keys().isdisjoint(METHODS):
            continue
        lines += [
            f"### {folder.name}",
            "",
            "| method | trained | mask AP | AP50 | box AP | seconds | peak MB | file KB |",
        ]
        lines.append("|---|---|---|---|---|---|---|---|")
        for name in (n for n in METHODS if n in summaries):
            s = summaries[name]
            lines.append(
                f"| {name} | {s['trainable_params']:,} ({s['trainable_percent']:.2f} %) | {s['segm']['AP']:.3f} "
                f"| {s['segm']['AP50']:.3f} | {s['bbox']['AP']:.3f} | {s['train_seconds']:.0f} "
                f"| {s['peak_memory_bytes'] / 1e6:.0f} | {s['adapter_bytes'] / 1e3:.0f} |"
            )
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    """Parse the command line, run the missing runs, write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results", help="folder of the summaries")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "results.md", help="page of the table")
    parser.add_argument("--runs", type=Path, default=Path("runs/recipes"), help="folder of the run directories")
    parser.add_argument("--sets", nargs="+", default=list(SETS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("overrides", nargs="*", help="further key=value overrides for every run")
    args = parser.parse_args()
    for data_set in args.sets:
        for name in args.methods:
            kept = args.out / data_set / f"{name}.json"
            if kept.exists():
                continue
            run = args.runs / data_set / name.replace(" ", "_").replace(",", "")
            shutil.rmtree(run, ignore_errors=True)
            line = command(name, args.data / data_set, run, args.steps, args.seed, args.overrides)
            print(f"{data_set}: {name}", flush=True)
            subprocess.run(line, check=True)
            kept.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(run / "summary.json", kept)
            put(args.page, "real sets", table(args.out))
    put(args.page, "real sets", table(args.out))


if __name__ == "__main__":
    main()
