"""Small directories of runs and sweeps, with the files of a real one but made without training."""

import json

import numpy as np
import pytest
import yaml
from PIL import Image

from vispeft.coco.results import write_results
from vispeft.evaluation import evaluate_coco
from vispeft.report import write_report

POLYGON = [10.0, 10.0, 40.0, 10.0, 40.0, 30.0, 10.0, 30.0]


def _write_run(path, *, images=None, name="disk & <b>box</b>", score=0.9, changes=None, config=None, scores=(0.25,)):
    """Write a run directory like `train`, for two small images with two objects, of which one is detected."""
    images = images or path / "images"
    images.mkdir(parents=True, exist_ok=True)
    path.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 255, (2, 48, 64, 3), dtype=np.uint8)
    for idx in range(2):
        Image.fromarray(pixels[idx]).save(images / f"{idx}.png")
    annotation = {"category_id": 7, "segmentation": [POLYGON], "bbox": [10, 10, 30, 20], "area": 600, "iscrowd": 0}
    annotations = {
        "images": [{"id": idx, "file_name": f"{idx}.png", "height": 48, "width": 64} for idx in range(2)],
        "categories": [{"id": 7, "name": name}, {"id": 9, "name": "unseen"}],
        "annotations": [annotation | {"id": 1, "image_id": 0}, annotation | {"id": 2, "image_id": 1}],
    }
    (path / "annotations_val.json").write_text(json.dumps(annotations))
    result = {"image_id": 0, "category_id": 7, "segmentation": [POLYGON], "bbox": [10, 10, 30, 20], "score": score}
    write_results(path / "predictions_val.json", [result])
    metrics = evaluate_coco(path / "annotations_val.json", path / "predictions_val.json").to_dict()
    summary = {"methods": ["lora"], "trainable_percent": 3.21, "adapter_bytes": 123_456, "train_seconds": 61.4}
    summary |= {"steps": 200, "peak_memory_bytes": 3 * 2**30, "device": "cpu"}
    (path / "summary.json").write_text(json.dumps(summary | metrics | (changes or {})))
    (path / "environment.json").write_text(json.dumps({"seed": 3, "command_line": ["vispeft", "train", "a b.yaml"]}))
    paths = {split: {"annotations": f"{split}.json", "images": str(images)} for split in ("train", "val")}
    (path / "config.yaml").write_text(yaml.safe_dump({"data": paths, "model": {"name": "mask_dino"}, **(config or {})}))
    lines = [{"step": step, "split": "train", "loss": 5.0 / step, "loss_mask": None} for step in range(1, 5)]
    lines += [
        {"step": 4 * (place + 1), "split": "val", "segm/AP": ap, "bbox/AP": 0.5} for place, ap in enumerate(scores)
    ]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 5, "spl')
    return path


def _write_sweep(path, *, counts=(0, 1, 2, 3), seeds=(1, 2), lost=True):
    """Write a sweep directory: adapters per block and seeds, best with 2 adapters; one failed and one pruned trial."""
    trials = []
    for count in counts:
        for seed in seeds:
            number = len(trials) + 1
            ap = 0.2 + 0.1 * min(count, 2) + 0.01 * seed - 0.02 * max(0, count - 2)
            metrics = {
                "segm/AP": ap,
                "segm/AP50": ap + 0.2,
                "bbox/AP": ap,
                "trainable_params": 10_000 * (1 + 3 * count),
            }
            metrics |= {"trainable_percent": 1.0, "adapter_bytes": 40_000, "train_seconds": 60.0 + count, "steps": 8}
            deltas = {"@outputs": {"method": "adapter", "width": 8, "count": count}} if count else {}
            _write_run(
                path / "trials" / f"{number:04d}",
                images=path / "images",
                config={"peft": {"deltas": deltas}, "train": {"seed": seed}},
                scores=(ap / 2, ap),
            )
            trials.append(_entry(number, count, seed, "complete", metrics))
    if lost:
        trials.append(_entry(len(trials) + 1, 9, 1, "failed", {}, "out of <memory>"))
        trials.append(_entry(len(trials) + 1, 8, 1, "pruned", {"segm/AP": 0.01}, "stopped early by the asha pruner"))
        (path / "logs").mkdir()
        (path / "logs" / f"{len(trials) - 1:04d}.txt").write_text("Traceback\n")
    results = {"name": "counts", "storage": "sqlite:///study.db", "sampler": "grid", "num_runs": len(trials)}
    results |= {"objectives": {"segm/AP": "maximize"}, "trials": trials}
    (path / "results.json").write_text(json.dumps(results))
    (path / "sweep.yaml").write_text("sweep: {space: {}}\n")
    return path


def _entry(number, count, seed, state, metrics, message=""):
    parameters = {'peft.deltas."@outputs".count': count} if count else {}
    entry = {"trial": number, "variant": "adapters" if count else "head only", "parameters": parameters, "seed": seed}
    return entry | {"state": state, "metrics": metrics, "directory": "", "message": message}


@pytest.fixture
def make_run():
    """Function that writes a run directory."""
    return _write_run


@pytest.fixture
def make_sweep():
    """Function that writes the directory of a sweep."""
    return _write_sweep


@pytest.fixture
def run_dir(tmp_path):
    return _write_run(tmp_path / "run")


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """A sweep with pages for it and for each of its runs."""
    from vispeft.report import write_sweep_report

    root = _write_sweep(tmp_path_factory.mktemp("site") / "sweep")
    for path in sorted((root / "trials").iterdir()):
        write_report(path)
    write_sweep_report(root)
    return root
