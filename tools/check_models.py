#!/usr/bin/env python
"""Take every model name through the commands on real photographs, with LoRA and with adapters.

    python tools/check_models.py --data DIR/fruits-nuts --json tools/results/models.json

DIR/fruits-nuts holds `train.json`, `val.json` and `images/`. For each model and method: `vispeft train` for 30 steps,
stopped about half way as by Ctrl-C, `vispeft train --resume`, `evaluate`, `predict` and `merge`. The metrics of
`evaluate` must be those of the summary, and a merged checkpoint must give the run's outputs; a run that cannot be
merged must give the reason. Models are tiny, and all but the bundled Mask DINO have random weights, so the metrics
themselves mean nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import json
import os
import platform
import re
import shutil
import signal
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
import yaml
from bench_adapters import processor

from vispeft.cli import main as vispeft
from vispeft.config import parse_config
from vispeft.engine import load_run
from vispeft.engine.build import build_base
from vispeft.io.json_files import read_json
from vispeft.io.metrics_file import read_metrics
from vispeft.models import SegmentationModel

ROOT = Path(__file__).resolve().parents[1]
STEPS = 30
_VIT = {"weights": "none", "backbone": "vit_tiny_patch16_224", "backbone_options": {"depth": 3, "embed_dim": 48}}
_TINY = {"weights": "none", "size": "tiny", "image_size": 96}


@dataclass(frozen=True)
class Case:
    """A model and the sites of its deltas.

    model: section `model` of the configuration; without `weights` where they are a tiny directory of `model_type`
    """

    model: Mapping[str, Any]
    lora: str
    adapter: str
    model_type: str | None = None


def _of_library(name: str, model_type: str, lora: str, adapter: str) -> Case:
    """Return a case of a tiny directory of the transformers library."""
    return Case({"name": name}, lora, adapter, model_type)


CASES: dict[str, Case] = {
    "mask_dino": Case(
        {"weights": "bundled", "image_size": 128}, "@encoder.qkv | @deformable.value_proj", "@attention_outputs"
    ),
    "mask2former": Case(
        {**_TINY, "name": "mask2former", "backbone": "resnet18"},
        "@encoder.conv2 | @deformable.value_proj | @decoder.q_proj",
        "@attention_outputs",
    ),
    "eomt": Case({**_TINY, **_VIT, "name": "eomt"}, "@encoder.qkv", "@encoder.proj"),
    "pmt": Case({**_TINY, **_VIT, "name": "pmt"}, "@decoder.q_proj | @decoder.v_proj", "@decoder.out_proj"),
    "transformers mask2former": _of_library(
        "transformers", "mask2former", "@encoder.q | @deformable.value_proj", "@decoder.out_proj"
    ),
    "transformers maskformer": _of_library(
        "transformers", "maskformer", "@encoder.q | @decoder.q_proj", "@decoder.out_proj"
    ),
    "transformers oneformer": _of_library(
        "transformers", "oneformer", "@encoder.q | @deformable.value_proj", "@decoder.out_proj"
    ),
    "transformers eomt": _of_library("transformers", "eomt", "@encoder.q | @encoder.v", "@encoder.proj"),
    "transformers eomt_dinov3": _of_library("transformers", "eomt_dinov3", "@encoder.q | @encoder.v", "@encoder.proj"),
    "sam3": _of_library("sam3", "sam3", "@encoder.q | @encoder.v | @decoder.q_proj", "@attention_outputs"),
}
METHODS: dict[str, dict[str, Any]] = {
    "lora": {"method": "lora", "rank": 2},
    "adapter": {"method": "adapter", "width": 4},
}


class CommandError(Exception):
    """A command that ended with another status than expected, with its last lines."""


def command(*words: str | Path, status: int = 0) -> str:
    """Run a command of the command line in this process and return its output."""
    output = io.StringIO()
    ended: int | str | None = 0
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            vispeft([str(word) for word in words])
        except SystemExit as end:
            ended = end.code
    text = output.getvalue()
    if (ended or 0) != status:
        raise CommandError(f"vispeft {words[0]} ended with status {ended}: {' '.join(text.split())[-1000:]}")
    return text


def document(case: Case, method: str, data: Path, folder: Path) -> dict[str, Any]:
    """Return the configuration of a case."""
    model = dict(case.model)
    if case.model_type is not None:
        model["weights"] = str(_directory(case.model_type, folder))
    sites = case.lora if method == "lora" else case.adapter
    splits = {
        side: {"annotations": str(data / f"{side}.json"), "images": str(data / "images")} for side in ("train", "val")
    }
    return {
        "model": model,
        "peft": {"deltas": {sites: METHODS[method]}, "train": ["@heads"]},
        "data": splits,
        "train": {
            "steps": STEPS,
            "batch_size": 2,
            "lr": 2e-3,
            "workers": 0,
            "log_every": 1,
            "eval_every": STEPS,
            "device": "cpu",
        },
        "loss": {"num_points": 256},
    }


def _directory(model_type: str, folder: Path) -> Path:
    """Return a directory of a model type with random weights, as the tests make it."""
    path = folder / model_type
    if not path.is_dir():
        spec = importlib.util.spec_from_file_location("tiny_transformers", ROOT / "tests" / "tiny_transformers.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        with contextlib.redirect_stderr(io.StringIO()):
            module.write_directory(model_type, path)
    return path


def check_case(case: Case, method: str, data: Path, folder: Path) -> dict[str, Any]:
    """Return what the commands gave; raise CommandError or AssertionError where one of them does not do its work."""
    began = time.monotonic()
    config, run = folder / "config.yaml", folder / "run"
    config.write_text(yaml.safe_dump(document(case, method, data, folder)))
    shutil.rmtree(run, ignore_errors=True)
    with _interrupted_after(STEPS // 2 - 1, run / "metrics.jsonl"):
        command("train", config, "--out", run, status=130)
    stopped = _train_steps(run)[-1]
    assert stopped < STEPS, "training ended before it was stopped"
    command("train", config, "--out", run, "--resume")
    steps = _train_steps(run)
    assert steps == list(range(1, STEPS + 1)), f"steps in metrics.jsonl: {steps}"
    command("evaluate", run, "--json", folder / "metrics.json")
    metrics = read_json(folder / "metrics.json")
    summary = read_json(run / "summary.json")
    assert metrics["segm"] == summary["segm"], "evaluate gives other metrics than training"
    image = sorted((data / "images").iterdir())[0]
    shutil.rmtree(folder / "predicted", ignore_errors=True)
    command("predict", run, image, "--out", folder / "predicted", "--threshold", "0", "--device", "cpu")
    losses = [line["loss"] for line in read_metrics(run / "metrics.jsonl") if line["split"] == "train"]
    return {
        "loss": [round(sum(part) / 5, 3) for part in (losses[:5], losses[-5:])],
        "stopped_after": stopped,
        "trained_percent": round(summary["trainable_percent"], 2),
        "instances": len(read_json(folder / "predicted" / "predictions.json")),
        "merge": _merge(case, run, folder),
        "seconds": round(time.monotonic() - began, 1),
    }


@contextlib.contextmanager
def _interrupted_after(step: int, metrics: Path) -> Iterator[None]:
    """Context that sends this process the signal of Ctrl-C once `step` steps are in the metrics file."""
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(0.02):
            if metrics.is_file() and metrics.read_bytes().count(b'"train"') >= step:
                os.kill(os.getpid(), signal.SIGINT)
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        is_over.set()
        watcher.join()


def _train_steps(run: Path) -> list[int]:
    """Return the steps of the lines of training in the metrics file."""
    return [int(line["step"]) for line in read_metrics(run / "metrics.jsonl") if line["split"] == "train"]


def _merge(case: Case, run: Path, folder: Path) -> str:
    """Merge a run; return "ok", or the reason of the refusal."""
    out = folder / ("merged" if case.model_type is not None else "merged.safetensors")
    try:
        command("merge", run, "--out", out)
    except CommandError as error:
        reason = re.search(r"do not merge: .*\((.*)\)", str(error))
        if reason is None:
            raise
        return f"refused: {reason[1]}"
    loaded = load_run(run)
    given = {"name": case.model["name"]} if case.model_type is not None else {}
    config = parse_config({"model": {**given, "weights": str(out)}})
    merged = build_base(config, len(loaded.class_names), class_names=loaded.class_names)
    side = case.model.get("image_size", 64)
    images = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    for answer, expected in zip(_outputs(merged, images), _outputs(loaded.model, images), strict=True):
        torch.testing.assert_close(answer, expected, rtol=1e-3, atol=1e-4)
    return "ok"


@torch.no_grad()
def _outputs(model: SegmentationModel, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return class and mask logits of all queries of one image."""
    predictions = model.eval()(images)
    queries = torch.arange(predictions.final.class_logits.shape[1])
    return predictions.final.class_logits, predictions.mask_logits(0, queries)


def main() -> None:
    """Parse the command line, run all cases, write the table; status 1 where one of them failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data set")
    parser.add_argument("--models", nargs="+", choices=CASES, default=list(CASES), metavar="MODEL")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--json", type=Path, help="file for the whole table")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as root:
        for name in args.models:
            for method in args.methods:
                folder = Path(root) / name.replace(" ", "_") / method
                folder.mkdir(parents=True)
                try:
                    outcome = {"outcome": "ok", **check_case(CASES[name], method, args.data, folder)}
                except Exception as error:  # the table goes on; what is raised is its result
                    outcome = {"outcome": f"FAIL: {type(error).__name__}: {error}".replace(root, "FOLDER")}
                rows.append({"model": name, "method": method, **outcome})
                print(json.dumps(rows[-1]), flush=True)
    if args.json:
        facts = {
            "machine": f"{platform.machine()}, {processor()}, 1 thread, torch {torch.__version__}",
            "timm": timm.__version__,
            "steps": STEPS,
        }
        args.json.write_text(json.dumps({**facts, "rows": rows}, indent=1) + "\n")
    raise SystemExit(any(row["outcome"] != "ok" for row in rows))


if __name__ == "__main__":
    main()
