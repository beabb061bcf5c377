#!/usr/bin/env python
"""Train the bundled base from scratch: a tiny Mask DINO on a small ViT, on an endless stream of synthetic scenes.

    python tools/pretrain_base.py --out runs/base --processes 2 [--extra ANNOTATIONS.json IMAGES_DIR]
    python tools/pretrain_base.py --out runs/base --bundle vispeft/assets/bundled.safetensors
    python tools/pretrain_base.py --out runs/base --evaluate vispeft/assets/bundled.safetensors

A call with the same --out resumes the training. The stages are in pretrain_base_stages.py: image sizes grow, and from
the third stage on there is a single class, "object". From the fifth on, an additional head that is not bundled predicts
the kind of shape. The learning rate falls to nearly zero at the end. --extra adds batches of a real COCO set from the
second stage on, with all objects labelled as blobs. --bundle writes the newest checkpoint as the weights file of the
package.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from pretrain_base_batches import ExtraSet, batches, normalise, scene_for
from pretrain_base_model import (
    BACKBONE,
    BACKBONE_OPTIONS,
    PretrainingLoss,
    build,
    init_position_embedding,
    parameter_groups,
)
from pretrain_base_stages import SEED, STAGES, Stage, learning_rate, stage_at
from pycocotools import mask as mask_utils

from vispeft.coco.results import to_coco_results
from vispeft.coco.rle import encode_region
from vispeft.evaluation import evaluate_coco
from vispeft.losses import HungarianMatcher
from vispeft.models import DetectionLimits, load_bundled, save_bundled
from vispeft.models.class_head import fit_class_head
from vispeft.models.mask_dino.criterion import Criterion
from vispeft.models.mask_dino.weights import CLASS_HEAD
from vispeft.structures import Batch, ImageMeta
from vispeft.synthetic import SHAPE_NAMES
from vispeft.training.step import SealedBatch


def train(args: argparse.Namespace) -> None:
    """Run the stages from the checkpoint in `--out` on."""
    threads = max(1, (os.cpu_count() or 1) // args.processes)
    torch.set_num_threads(threads)
    fabric = Fabric(accelerator="cpu", devices=args.processes, strategy="ddp" if args.processes > 1 else "auto")
    fabric.launch()
    args.out.mkdir(parents=True, exist_ok=True)
    checkpoint_path = args.out / "checkpoint.pt"
    state = torch.load(checkpoint_path, weights_only=True) if checkpoint_path.exists() else None
    step = 0 if state is None else int(state["step"])
    extra = ExtraSet(*args.extra) if args.extra else None
    total = sum(stage.steps for stage in STAGES)
    while step < total:
        stage, within = stage_at(step)
        end = step - within + stage.steps
        step, state = train_stage(fabric, args.out, stage, step, end, state, extra)


def train_stage(
    fabric: Fabric, out: Path, stage: Stage, step: int, end: int, state: dict | None, extra: ExtraSet | None
) -> tuple[int, dict]:
    """Train from `step` to `end` within one stage, with a new model whose class head fits the stage."""
    torch.manual_seed(SEED)
    model = build(1 if stage.is_class_agnostic else len(SHAPE_NAMES), stage.num_queries)
    criterion = Criterion(matcher=HungarianMatcher(num_points=768), num_points=768)
    module = PretrainingLoss(model, criterion, stage)
    optimizer = torch.optim.AdamW(parameter_groups(module), lr=stage.lr, betas=(0.9, 0.98))
    if state is not None:
        model.load_state_dict(fit_class_head(state["model"], CLASS_HEAD, model.num_classes))
        if module.kinds is not None and state.get("kinds"):
            module.kinds.load_state_dict(state["kinds"])
        optimizer.load_state_dict(moments_for(optimizer, state["optimizer"]))
    else:
        init_position_embedding(model)
    wrapped, optimizer = fabric.setup(module, optimizer)
    log = (out / "log.jsonl").open("a")
    started, sums = time.time(), {}
    torch.manual_seed(SEED + step + fabric.global_rank)
    model.train()
    for images, targets in batches(step, fabric.global_rank, extra):
        if step == end:
            break
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step)
        with torch.autocast("cpu", torch.bfloat16):
            losses = wrapped(SealedBatch(Batch(normalise(images, model), tuple(targets), ())))
        loss = sum(losses.values())
        fabric.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 2.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        for name, value in losses.items():
            sums[name] = sums.get(name, 0.0) + value.item() / 50
        if step % 50 == 0 or step == end:
            seconds = time.time() - started
            row = {
                "step": step,
                "size": stage.image_size,
                "lr": round(learning_rate(step), 6),
                "s_per_step": seconds / 50,
            }
            row |= {"loss": sum(sums.values()), **sums}
            if fabric.global_rank == 0:
                log.write(json.dumps({k: round(v, 6) for k, v in row.items()}) + "\n")
                log.flush()
            started, sums = time.time(), {}
        if fabric.global_rank == 0 and (step % 200 == 0 or step == end):
            save(out, module, optimizer, step)
    return step, checkpoint(module, optimizer, step)


def moments_for(optimizer: torch.optim.Optimizer, saved: dict) -> dict:
    """Return the saved optimizer state without the moments of a class head of another size, which start from zero."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    fitting = {i: s for i, s in saved["state"].items() if s["exp_avg"].shape == parameters[i].shape}
    return {"state": fitting, "param_groups": optimizer.state_dict()["param_groups"]}


def checkpoint(module: PretrainingLoss, optimizer: torch.optim.Optimizer, step: int) -> dict[str, Any]:
    """Return everything that is needed to resume."""
    kinds = module.kinds.state_dict() if module.kinds is not None else {}
    return {"model": module.model.state_dict(), "kinds": kinds, "optimizer": optimizer.state_dict(), "step": step}


def save(out: Path, module: PretrainingLoss, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Write the checkpoint atomically."""
    torch.save(checkpoint(module, optimizer, step), out / "checkpoint.tmp")
    os.replace(out / "checkpoint.tmp", out / "checkpoint.pt")


def bundle(run: Path, out: Path) -> None:
    """Write the newest checkpoint of a run as the weights file of the package."""
    state = torch.load(run / "checkpoint.pt", weights_only=True)
    num_classes = len(state["model"]["decoder.class_embed.weight"])
    model = build(num_classes, STAGES[-1].num_queries)
    model.load_state_dict(state["model"])
    options = {"num_queries": STAGES[-1].num_queries, "denoising_budget": STAGES[-1].num_queries}
    arguments = {
        "name": "mask_dino",
        "backbone": BACKBONE,
        "size": "tiny",
        "backbone_options": BACKBONE_OPTIONS,
        **options,
    }
    save_bundled(model, out, arguments, notes={"steps": str(state["step"]), "seed": str(SEED)})
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB, {state['step']} steps, {num_classes} class(es)")


def evaluate(weights: Path, size: int, count: int) -> dict[str, Any]:
    """Return class-agnostic COCO metrics of bundled weights on held-out broad scenes of `size` pixels."""
    model = load_bundled(path=weights).eval()
    stage = Stage(1, size, 1, 0.0, 0.0, 0, max_objects=100, min_side=8.0)
    ground_truth: dict[str, list[Any]] = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "object"}]}
    results: list[dict[str, Any]] = []
    for image_id in range(1, count + 1):
        scene = scene_for(np.random.default_rng((SEED, 2**31, image_id)), stage)
        ground_truth["images"].append({"id": image_id, "file_name": str(image_id), "height": size, "width": size})
        for mask in scene.masks:
            rle = encode_region(mask, 0, 0, size, size)
            box, area = (mask_utils.toBbox(rle).tolist(), int(mask.sum()))
            annotation = {"image_id": image_id, "category_id": 1, "segmentation": rle, "bbox": box, "area": area}
            ground_truth["annotations"].append({"id": len(ground_truth["annotations"]) + 1, "iscrowd": 0, **annotation})
        with torch.no_grad():
            predictions = model(normalise([scene.image], model))
        meta = ImageMeta(image_id, str(image_id), size, size, size, size)
        instances = model.instances(predictions, [meta], padded_size=(size, size), limits=DetectionLimits())[0]
        results += to_coco_results(instances, image_id, [1])
    return evaluate_coco(ground_truth, results).to_dict()


def main() -> None:
    """Parse the command line and train, bundle or evaluate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--extra", type=Path, nargs=2, metavar=("ANNOTATIONS", "IMAGES"))
    parser.add_argument(
        "--bundle", type=Path, help="write the newest checkpoint of --out to this file instead of training"
    )
    parser.add_argument("--evaluate", type=Path, help="score these bundled weights on held-out scenes instead")
    args = parser.parse_args()
    if args.bundle:
        bundle(args.out, args.bundle)
    elif args.evaluate:
        metrics = {size: evaluate(args.evaluate, size, 60)["segm"] for size in (128, 192, 256)}
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "evaluation.json").write_text(json.dumps(metrics, indent=1))
        print(json.dumps(metrics, indent=1))
    else:
        train(args)


if __name__ == "__main__":
    main()
