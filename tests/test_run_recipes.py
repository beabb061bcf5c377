"""The tool of the real sets compares methods over the seeds of their runs."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

TOOL = Path(__file__).parents[1] / "tools" / "run_recipes.py"
BOX = [4, 4, 20, 20]


def annotations() -> dict[str, Any]:
    """Twelve images of one square each."""
    images = [{"id": i, "file_name": f"{i}.png", "width": 40, "height": 40} for i in range(1, 13)]
    square = [4, 4, 24, 4, 24, 24, 4, 24]
    squares = [
        {"id": i, "image_id": i, "category_id": 1, "bbox": BOX, "area": 400, "iscrowd": 0, "segmentation": [square]}
        for i in range(1, 13)
    ]
    return {"images": images, "annotations": squares, "categories": [{"id": 1, "name": "square"}]}


def make_run(runs: Path, summaries: Path, *, method: str, rank: int, seed: int, found: int) -> None:
    """Write a finished run that finds the squares of the first `found` images, and its kept summary."""
    run = runs / f"{method}_seed{seed}"
    run.mkdir(parents=True)
    content = annotations()
    mask = {"size": [40, 40], "counts": [164, *[20] * 39, 1600 - 164 - 39 * 20]}
    results = [
        {"image_id": i, "category_id": 1, "score": 0.9, "bbox": BOX, "segmentation": mask} for i in range(1, found + 1)
    ]
    (run / "config.yaml").write_text(yaml.safe_dump({"peft": {"rank": rank}, "train": {"seed": seed}}))
    (run / "annotations_val.json").write_text(json.dumps(content))
    (run / "predictions_val.json").write_text(json.dumps(results))
    summary = {"trainable_params": 10 * rank, "trainable_percent": rank, "adapter_bytes": 9, "train_seconds": 1.0}
    (run / "summary.json").write_text(json.dumps(summary))
    (summaries / method).mkdir(parents=True, exist_ok=True)
    (summaries / method / f"seed{seed}.json").write_text(json.dumps(summary))


def test_write_comparison__names_the_better_method(tmp_path: Path) -> None:
    runs, summaries = tmp_path / "runs", tmp_path / "kept"
    for seed in (0, 1):
        make_run(runs, summaries, method="LoRA", rank=4, seed=seed, found=12)
        make_run(runs, summaries, method="full", rank=100, seed=seed, found=3)
    code = f"import run_recipes as r; r.write_comparison(r.Path({str(summaries)!r}), r.Path({str(runs)!r}))"
    subprocess.run([sys.executable, "-c", code], cwd=TOOL.parent, check=True)
    comparison = json.loads((summaries / "comparison.json").read_text())
    assert {result["name"]: result["trials"] for result in comparison["results"]} == {"LoRA": [1, 2], "full": [3, 4]}
    assert comparison["sentence"].startswith("LoRA has the highest AP, 1.000")
