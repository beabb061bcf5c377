#!/usr/bin/env python
"""Adapt the bundled base to real COCO sets with every method at the same budget, and write the table of results.

    python tools/run_recipes.py --data DIR [DIR ...] [--sets facades ...] [--methods full ...] [--seeds 0 1 2]

Each DIR contains folders of sets with `train.json`, `val.json` and `images/`. Every run is `vispeft train` with a
recipe of `configs/`, the overrides listed in `METHODS`, and image size, queries and augmentation of the recipe of the
set if `SETS` has one. Its `summary.json` is copied to `--out/<set>/<method>/seed<n>.json`. Existing runs are not
repeated, so that calls for different sets may run side by side. At the end the methods of each set are compared as by
`vispeft compare`, if all its runs are in `--runs`. The table of all results is written into `--page`, between its two
marks.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import yaml
from compared_runs import compare_runs
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
# set -> recipe with the augmentation for all methods; None: that of the methods' recipes
SETS: dict[str, str | None] = {
    "nuclei-histo": "nuclei_histo_lora",
    "facades": "facades_lora",
    "fruits-nuts": "fruits_nuts_lora",
    "animals": None,
    "coco-mini": None,
}

COMPARISON = "comparison.json"


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
    """Return overrides for the images, queries and augmentation of the recipe of a set; none for a set without one."""
    recipe = SETS.get(data_set)
    if recipe is None:
        return []
    content = yaml.safe_load((ROOT / "configs" / f"{recipe}.yaml").read_text())
    model = {key: value for key, value in content["model"].items() if key in ("image_size", "num_queries")}
    augment = content["data"].get("augment", {})
    sections = {"model": model, "data.augment": augment}
    return [f"{section}.{key}={json.dumps(value)}" for section, some in sections.items() for key, value in some.items()]


def adapters(recipe: str, count: int) -> str:
    """Return the deltas of a recipe with another number of adapters per site, as a YAML flow mapping."""
    deltas = yaml.safe_load((ROOT / "configs" / f"{recipe}.yaml").read_text())["peft"]["deltas"]
    return json.dumps({pattern: {**method, "count": count} for pattern, method in deltas.items()})


def table(out: Path) -> str:
    """Return a Markdown table per set with every summary under `out`."""
    lines = []
    for folder in sorted(p for p in out.iterdir() if p.is_dir()):
        by_method = {name: [json.loads(p.read_text()) for p in seed_files(folder / name)] for name in METHODS}
        if not any(by_method.values()):
            continue
        lines += [
            f"### {folder.name}",
            "",
            "| method | trained | mask AP | of each seed | AP50 | box AP | seconds | peak MB | file KB |",
        ]
        lines.append("|---|---|---|---|---|---|---|---|---|")
        for name, summaries in by_method.items():
            if not summaries:
                continue
            s, seeds = summaries[0], [each["segm"]["AP"] for each in summaries]
            seconds = statistics.mean(each["train_seconds"] for each in summaries)
            lines.append(
                f"| {name} | {s['trainable_params']:,} ({s['trainable_percent']:.2f} %) | {statistics.mean(seeds):.3f} "
                f"| {' '.join(f'{seed:.3f}' for seed in seeds)} "
                f"| {statistics.mean(each['segm']['AP50'] for each in summaries):.3f} "
                f"| {statistics.mean(each['bbox']['AP'] for each in summaries):.3f} | {seconds:.0f} "
                f"| {s['peak_memory_bytes'] / 1e6:.0f} | {s['adapter_bytes'] / 1e3:.0f} |"
            )
        lines.append("")
        if sentence := kept_sentence(folder, sum(map(len, by_method.values()))):
            lines += [sentence, ""]
    return "\n".join(lines)


def kept_sentence(folder: Path, num_runs: int) -> str | None:
    """Return the sentence of a set's comparison; None without one, or where it compares other runs than are kept."""
    if not (folder / COMPARISON).is_file():
        return None
    comparison = json.loads((folder / COMPARISON).read_text())
    sentence: str = comparison["sentence"]
    return sentence if sum(len(result["trials"]) for result in comparison["results"]) == num_runs else None


def write_comparison(folder: Path, runs: Path) -> None:
    """Compare the methods of one set, by the runs of all seeds; nothing where a run of a kept summary is not here.

    folder: the set's, of the summaries; runs: the set's, of the run directories
    """
    kept = [(name, path.stem) for name in METHODS for path in seed_files(folder / name)]
    directories = [run_directory(runs, name, seed) for name, seed in kept]
    if len({name for name, _ in kept}) > 1 and all(directory.is_dir() for directory in directories):
        comparison = compare_runs(directories, [name for name, _ in kept])
        (folder / COMPARISON).write_text(json.dumps(comparison, indent=1) + "\n")


def run_directory(runs: Path, name: str, seed: str) -> Path:
    """Return the run directory of a method of one set. seed: such as `seed0`"""
    return runs / f"{name.replace(' ', '_').replace(',', '')}_{seed}"


def seed_files(folder: Path) -> list[Path]:
    """Return the kept summaries of one method, by seed."""
    return sorted(folder.glob("seed*.json"))


def main() -> None:
    """Parse the command line, run the missing runs, write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results", help="folder of the summaries")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "results.md", help="page of the table")
    parser.add_argument("--runs", type=Path, default=Path("runs/recipes"), help="folder of the run directories")
    parser.add_argument("--sets", nargs="+", default=list(SETS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", dest="overrides", nargs="+", default=[], help="key=value overrides for every run")
    args = parser.parse_args()
    folders = {name: folder / name for name in args.sets for folder in args.data if (folder / name).is_dir()}
    if missing := [name for name in args.sets if name not in folders]:
        parser.error(f"no folder of --data has the set {', '.join(missing)}")
    for seed, data_set, name in itertools.product(args.seeds, args.sets, args.methods):
        kept = args.out / data_set / name / f"seed{seed}.json"
        if kept.exists():
            continue
        run = run_directory(args.runs / data_set, name, f"seed{seed}")
        shutil.rmtree(run, ignore_errors=True)
        print(f"{data_set}: {name}, seed {seed}", flush=True)
        subprocess.run(command(name, folders[data_set], run, args.steps, seed, args.overrides), check=True)
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(run / "summary.json", kept)
        put(args.page, "real sets", table(args.out))
    for data_set in args.sets:
        write_comparison(args.out / data_set, args.runs / data_set)
    put(args.page, "real sets", table(args.out))


if __name__ == "__main__":
    main()
