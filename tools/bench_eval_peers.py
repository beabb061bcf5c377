"""COCO evaluators beside pycocotools, for `bench_eval.py`: each from files to the metrics of masks and of boxes.

Those that cannot be imported are left out. Each has one thread, by the environment variables that `bench_eval.py` sets.
They take the results as they are, so that detected masks have the sizes of their boxes: compare the metrics that do not
depend on sizes.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import json
from collections.abc import Callable
from pathlib import Path

Peer = Callable[[Path, Path], dict[str, list[float]]]
KINDS = ("segm", "bbox")


def by_vernier(annotations: Path, results: Path) -> dict[str, list[float]]:
    """Evaluate with vernier's `Evaluator` in its strict mode."""
    instance = importlib.import_module("vernier.instance")
    truth, content = instance.CocoDataset.from_json(annotations.read_bytes()), results.read_bytes()
    ious = {"segm": instance.Segm(), "bbox": instance.Bbox()}
    return {
        kind: list(
            instance.Evaluator(iou=ious[kind], parity_mode="strict").evaluate(truth, content, num_threads=1).stats
        )
        for kind in KINDS
    }


def by_hotcoco(annotations: Path, results: Path) -> dict[str, list[float]]:
    """Evaluate with hotcoco's `COCOeval`."""
    module = importlib.import_module("hotcoco")
    truth = module.COCO(str(annotations))
    detected = truth.load_res(str(results))
    return {kind: _stats(module.COCOeval, truth, detected, kind) for kind in KINDS}


def by_ultrafast(annotations: Path, results: Path) -> dict[str, list[float]]:
    """Evaluate with ultrafast-pycocotools' `COCOeval`."""
    module = importlib.import_module("ultrafast_pycocotools")
    truth = module.COCO(str(annotations))
    detected = truth.loadRes(str(results))
    return {kind: _stats(module.COCOeval, truth, detected, kind) for kind in KINDS}


def by_faster_coco_eval(annotations: Path, results: Path) -> dict[str, list[float]]:
    """Evaluate with faster-coco-eval's `COCOeval_faster`."""
    module = importlib.import_module("faster_coco_eval")
    truth = module.COCO(str(annotations))
    found = {}
    for kind in KINDS:
        detected = truth.loadRes(json.loads(results.read_bytes()))
        found[kind] = _stats(module.COCOeval_faster, truth, detected, kind)
    return found


_PEERS: dict[str, tuple[str, Peer]] = {
    "vernier": ("vernier", by_vernier),
    "hotcoco": ("hotcoco", by_hotcoco),
    "ultrafast-pycocotools": ("ultrafast_pycocotools", by_ultrafast),
    "faster-coco-eval": ("faster_coco_eval", by_faster_coco_eval),
}


def importable_peers() -> dict[str, Peer]:
    """Return the evaluators that are installed, by the names of their distributions."""
    return {name: work for name, (module, work) in _PEERS.items() if importlib.util.find_spec(module)}


def _stats(evaluator_type: Callable[..., object], truth: object, detected: object, kind: str) -> list[float]:
    """Return the twelve metrics of an evaluator with the methods of pycocotools' `COCOeval`."""
    evaluator = evaluator_type(truth, detected, kind)
    with contextlib.redirect_stdout(io.StringIO()):
        for step in ("evaluate", "accumulate", "summarize"):
            getattr(evaluator, step)()
    return [float(value) for value in list(evaluator.stats)[:12]]  # type: ignore[attr-defined]
