#!/usr/bin/env python
"""Profile a training step and an evaluation step of Mask DINO: `python tools/profile_step.py [--json F]`.

The bundled base is trained with the recipe `configs/bundled_lora.yaml` on synthetic scenes of 256 pixels, in one
thread, with 4 images per training step and 1 per evaluation step. Seconds are processor time: of each part of a step
the median over steps, of each operator from torch's profiler.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from vispeft import peft
from vispeft.coco.results import to_coco_results
from vispeft.coco.sets import to_annotations
from vispeft.config import Config, load_config
from vispeft.engine.attach import attach
from vispeft.engine.build import build_base, complete
from vispeft.engine.loaders import DataSets, Share, read_sets, train_loader, val_loader
from vispeft.engine.settings import criterion_of
from vispeft.evaluation import evaluate_coco
from vispeft.models import DetectionLimits
from vispeft.models.mask_dino.criterion import Criterion
from vispeft.synthetic import write_splits
from vispeft.training.processor import describe_cpu
from vispeft.training.step import in_float32

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("backbone", "pixel_decoder", "decoder")


class Clock:
    """Seconds of processor time of each part, for every step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self._began: dict[str, float] = {}

    def new_step(self) -> None:
        self.steps.append(defaultdict(float))

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Measure the code in the `with` block."""
        began = time.process_time()
        try:
            yield
        finally:
            self.steps[-1][name] += time.process_time() - began

    def watch(self, module: nn.Module, name: str) -> None:
        """Measure each call of a module."""
        module.register_forward_pre_hook(lambda *_: self._began.__setitem__(name, time.process_time()))
        module.register_forward_hook(lambda *_: self._end(name))

    def _end(self, name: str) -> None:
        self.steps[-1][name] += time.process_time() - self._began.pop(name)

    def medians(self) -> dict[str, float]:
        """Return the median seconds of each part over the steps."""
        names = dict.fromkeys(name for step in self.steps for name in step)
        return {name: round(statistics.median(step.get(name, 0.0) for step in self.steps), 4) for name in names}


def operators(run: Callable[[], None], most: int = 12) -> dict[str, float]:
    """Return the share of processor time of each operator in `run`, the largest first."""
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        run()
    events = seen.key_averages()
    total = sum(event.self_cpu_time_total for event in events)
    largest = sorted(events, key=lambda event: -event.self_cpu_time_total)[:most]
    return {event.key: round(event.self_cpu_time_total / total, 4) for event in largest}


def train_steps(config: Config, sets: DataSets, steps: int) -> Mapping[str, Any]:
    """Measure parts and operators of training steps, after a warm-up step."""
    model = build_base(config, len(sets.train.categories))
    attach(model, config)
    peft.train_mode(model)
    criterion = criterion_of(config, model)
    assert isinstance(criterion, Criterion)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    clock, batches = Clock(), iter(train_loader(config, sets.train, model, Share()))
    for name in PARTS:
        clock.watch(getattr(model, name), name)
    clock.watch(criterion.matcher, "matching, within the losses")

    def step() -> None:
        clock.new_step()
        with clock.part("data"):
            batch = next(batches)
        predictions = model(batch.inputs, batch.targets)
        with clock.part("losses"):
            loss = torch.stack(list(criterion(in_float32(predictions), batch.targets).values())).sum()
        with clock.part("backward"):
            loss.backward()  # type: ignore[no-untyped-call]
        with clock.part("optimizer"):
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return _measured(step, clock, steps)


def eval_steps(config: Config, sets: DataSets, steps: int) -> Mapping[str, Any]:
    """Measure parts and operators of evaluation steps, and the evaluation of their predictions."""
    model = build_base(config, len(sets.val.categories)).eval()
    clock, batches = Clock(), iter(val_loader(config, sets.val, model, Share()))
    for name in PARTS:
        clock.watch(getattr(model, name), name)
    results: list[dict[str, Any]] = []

    @torch.no_grad()
    def step() -> None:
        clock.new_step()
        with clock.part("data"):
            batch = next(batches)
        predictions = model(batch.inputs)
        with clock.part("masks at original size, as RLE"):
            found = model.instances(
                in_float32(predictions), batch.metas, padded_size=batch.padded_size, limits=DetectionLimits()
            )
        with clock.part("results"):
            for instances, meta in zip(found, batch.metas, strict=True):
                results.extend(to_coco_results(instances, meta.image_id, [c.id for c in sets.val.categories]))

    measured = _measured(step, clock, steps)
    predicted = {result["image_id"] for result in results}
    annotations = to_annotations(
        sets.val.subset(index for index, image in enumerate(sets.val.images) if image.id in predicted)
    )
    began = time.process_time()
    evaluate_coco(annotations, results)
    return {
        **measured,
        "scoring_s": round(time.process_time() - began, 4),
        "images": len(predicted),
    }


def _measured(step: Callable[[], None], clock: Clock, steps: int) -> dict[str, Any]:
    step()
    clock.steps.clear()
    began = time.process_time()
    for _ in range(steps):
        step()
    whole = (time.process_time() - began) / steps
    parts = clock.medians()
    return {"step_s": round(whole, 4), "parts_s": parts, "operators": operators(step)}


def table(title: str, measured: Mapping[str, Any]) -> str:
    """Return the measurements as text for the terminal."""
    lines = [f"{title}: {measured['step_s']:.3f} s"]
    lines += [
        f"  {name:32} {s:7.3f} s {100 * s / measured['step_s']:5.1f} %" for name, s in measured["parts_s"].items()
    ]
    lines += [f"  {name:32} {100 * share:15.1f} %" for name, share in measured["operators"].items()]
    return "\n".join(lines)


def main() -> None:
    """Draw the scenes, measure both kinds of step, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        train, val = write_splits(
            Path(folder), num_train=8, num_val=4 * (args.steps + 3), size=256, seed=0, single_class="object"
        )
        words = [f"data.{split}.annotations={path}" for split, path in (("train", train), ("val", val))]
        words += [f"data.{split}.images={folder}/images" for split in ("train", "val")]
        words += [
            "train.device=cpu",
            "train.workers=0",
            "train.steps=100",
            "train.batch_size=4",
            "model.image_size=256",
        ]
        config = complete(load_config(ROOT / "configs" / "bundled_lora.yaml", words), 8)
        sets = read_sets(config)
        found = {
            "training step": train_steps(config, sets, args.steps),
            "evaluation step": eval_steps(config, sets, args.steps),
        }
    for title, measured in found.items():
        print(table(title, measured))
    if args.json:
        versions = {"torch": torch.__version__}
        args.json.write_text(json.dumps({"machine": describe_cpu(), "versions": versions, **found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
