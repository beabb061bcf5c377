"""Layout of a run directory: the names of its files, and the names `runs/<name>-<n>` of new directories."""

from __future__ import annotations

from pathlib import Path

CONFIG_FILE = "config.yaml"
ENVIRONMENT_FILE = "environment.json"
METRICS_FILE = "metrics.jsonl"
ADAPTER_FILE = "adapter.safetensors"
CHECKPOINT_FILE = Path("checkpoints") / "last.pt"
ANNOTATIONS_FILE = "annotations_val.json"
# in the place of the annotations, in runs of the hub
CATEGORIES_FILE = "categories.json"
PREDICTIONS_FILE = "predictions_val.json"
SUMMARY_FILE = "summary.json"
INSPECTION_FILE = "inspection.json"
REPORT_FILE = "report.html"
TENSORBOARD_DIR = "tensorboard"

RUNS = Path("runs")


def numbered_directories(name: str) -> list[Path]:
    """Return the directories `runs/<name>-<n>` that exist, the highest number first."""
    numbers = [path.name.removeprefix(f"{name}-") for path in RUNS.glob(f"{name}-*")]
    ordered = sorted((int(number) for number in numbers if number.isdecimal()), reverse=True)
    return [RUNS / f"{name}-{number}" for number in ordered]


def free_directory(name: str) -> Path:
    """Return the first `runs/<name>-<n>` that does not exist, counted from 1."""
    number = 1
    while (RUNS / f"{name}-{number}").exists():
        number += 1
    return RUNS / f"{name}-{number}"
