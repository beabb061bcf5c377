#!/usr/bin/env python
"""Train the bundled base: a tiny Mask DINO over a small ViT, from nothing, on synthetic scenes without end.

    python tools/pretrain_base.py --out runs/base --processes 2 [--extra ANNOTATIONS.json IMAGES_DIR]
    python tools/pretrain_base.py --out runs/base --bundle vispeft/assets/bundled.safetensors
    python tools/pretrain_base.py --out runs/base --evaluate vispeft/assets/bundled.safetensors

Start it again with the same --out and it goes on where it was. The stages below are the whole recipe: small images
first, larger ones later, and from the third stage on a single class, "object", beside which, from the fifth on, the
kinds of shapes are told apart by a head that is not bundled; the learning rate falls to zero at the end. --extra mixes
a real COCO set in from the second stage on (its objects count as blobs). --bundle writes the newest checkpoint as the
weights that the package ships.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from pycocotools import mask as mask_utils
from torch import Tensor, nn
from torch.nn import functional as F

from vispeft.coco.results import to_coco_results
from vispeft.coco.rle import encode_region
from vispeft.data import Draw, InstanceDataset, TrainTransform, read_coco
from vispeft.evaluation import evaluate_coco
from vispeft.losses import HungarianMatcher
from vispeft.models import DetectionLimits, MaskDINO, build_model, load_bundled, save_bundled
from vispeft.models.layers.geometry import map_position_embedding
from vispeft.models.mask_dino.criterion import Criterion
from vispeft.models.mask_dino.weights import fit_class_head
from vispeft.structures import Batch, ImageMeta, Predictions, Targets
from vispeft.synthetic import SHAPE_NAMES, Scene, render_scene
from vispeft.training.step import SealedBatch, in_float32

BACKBONE = "vit_small_patch16_rope_ape_224"
BACKBONE_OPTIONS = {"patch_size": 8, "embed_dim": 192, "depth": 6, "num_heads": 3, "init_values": None}


@dataclass(frozen=True)
class Stage:
    """Some steps at one image size. `batch` is per process, `extra` the share of batches from the real set."""

    steps: int
    image_size: int
    batch: int
    lr: float
    final_lr: float
    num_queries: int
    is_class_agnostic: bool = False
    extra: float = 0.0
    max_objects: int = 200
    tells_kinds: bool = False
    min_side: float = 0.0  # pixels: scenes whose median object has a smaller square root of area are drawn again


STAGES = (
    Stage(steps=1300, image_size=128, batch=8, lr=5e-4, final_lr=5e-4, num_queries=50, max_objects=25, min_side=9.0),
    Stage(steps=100, image_size=192, batch=5, lr=5e-4, final_lr=5e-4, num_queries=80, extra=0.15, max_objects=70),
    Stage(
        800,
        image_size=192,
        batch=5,
        lr=5e-4,
        final_lr=4e-4,
        num_queries=80,
        extra=0.15,
        max_objects=70,
        is_class_agnostic=True,
    ),
    Stage(450, image_size=256, batch=3, lr=4e-4, final_lr=1e-5, num_queries=100, extra=0.15, is_class_agnostic=True),
    Stage(
        1050,
        image_size=192,
        batch=5,
        lr=5e-4,
        final_lr=4e-4,
        num_queries=100,
        extra=0.15,
        max_objects=90,
        is_class_agnostic=True,
        tells_kinds=True,
    ),
    Stage(
        600,
        image_size=256,
        batch=3,
        lr=4e-4,
        final_lr=1e-6,
        num_queries=100,
        extra=0.15,
        is_class_agnostic=True,
        tells_kinds=True,
    ),
)
WARMUP = 150
SEED = 20261120


def stage_at(step: int) -> tuple[Stage, int]:
    """The stage of a global step, and the step within it."""
    for stage in STAGES:
        if step < stage.steps:
            return stage, step
        step -= stage.steps
    return STAGES[-1], STAGES[-1].steps


def learning_rate(step: int) -> float:
    """From each stage's `lr` to its `final_lr` along a cosine, after a warm-up from where the last stage ended."""
    stage, within = stage_at(step)
    share = (1 + math.cos(math.pi * within / stage.steps)) / 2
    rate = stage.final_lr + (stage.lr - stage.final_lr) * share
    index = STAGES.index(stage)
    before = STAGES[index - 1].final_lr if index else 0.0
    return before + (rate - before) * min(1.0, (within + 1) / WARMUP)


def build(num_classes: int, num_queries: int) -> MaskDINO:
    """The tiny model that is bundled."""
    return build_model(
        "mask_dino",
        backbone=BACKBONE,
        num_classes=num_classes,
        size="tiny",
        backbone_options=BACKBONE_OPTIONS,
        num_queries=num_queries,
        denoising_budget=num_queries,
    )


@torch.no_grad()
def place_tokens(model: MaskDINO) -> None:
    """Start the learned position embedding from sines: queries and mask features can tell places apart at once."""
    vit: Any = model.backbone.body.model
    side = round(vit.pos_embed.shape[1] ** 0.5)
    vit.pos_embed.copy_(map_position_embedding(side, side, vit.pos_embed.shape[2], vit.pos_embed.device)[None] / 2)


class PretrainingLoss(nn.Module):
    """The model and its losses in one module, as DDP wants it.

    In class-agnostic stages every target is an object. With `tells_kinds`, a linear head beside the model's own reads
    the kind of shape from the denoising queries, whose targets need no matching: what the decoder says of an object
    then still tells its kind, which is what adapting to several classes starts from.
    """

    def __init__(self, model: MaskDINO, criterion: Criterion, stage: Stage) -> None:
        super().__init__()
        self.model = model
        self.criterion = criterion
        self.is_class_agnostic = stage.is_class_agnostic
        self.kinds = nn.Linear(model.decoder.class_embed.in_features, len(SHAPE_NAMES)) if stage.tells_kinds else None

    def forward(self, sealed: SealedBatch) -> dict[str, Tensor]:
        """Weighted scalar losses by name."""
        images, targets = sealed.batch.images, sealed.batch.targets
        seen = tuple(replace(t, labels=t.labels * 0) for t in targets) if self.is_class_agnostic else targets
        states: list[Tensor] = []
        hook = self.model.decoder.class_embed.register_forward_pre_hook(lambda _, inputs: states.append(inputs[0]))
        predictions = self.model(images, seen)
        hook.remove()
        with torch.autocast(images.device.type, enabled=False):
            losses = self.criterion(in_float32(predictions), seen)
            if self.kinds is not None:
                losses["kind"] = self._kind_loss(predictions, states, targets)
        return losses

    def _kind_loss(self, predictions: Predictions, states: list[Tensor], targets: tuple[Targets, ...]) -> Tensor:
        """Cross-entropy of the shapes' kinds over the denoising queries of the decoder's layers."""
        denoising = predictions.denoising
        num_noised = denoising.num_groups * denoising.group_size
        num_rows = num_noised + predictions.final.boxes.shape[1]
        layers = [s[:, :num_noised].float() for s in states if s.dim() == 3 and s.shape[1] == num_rows]
        kinds = torch.full((len(targets), denoising.num_groups, denoising.group_size), -100)
        for i, target in enumerate(targets):
            kinds[i, :, : len(target)] = target.labels
        logits = torch.cat([self.kinds(layer) for layer in layers])
        return F.cross_entropy(logits.flatten(0, 1), kinds.flatten().repeat(len(layers)))


def to_targets(labels: np.ndarray, masks: np.ndarray) -> Targets:
    """labels [T], masks [T, H, W] bool; boxes are the masks' own."""
    height, width = masks.shape[1:]
    boxes = np.zeros((len(masks), 4), dtype=np.float32)
    for i, mask in enumerate(masks):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        x0, x1, y0, y1 = columns[0] / width, (columns[-1] + 1) / width, rows[0] / height, (rows[-1] + 1) / height
        boxes[i] = ((x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0)
    return Targets(torch.from_numpy(labels), torch.from_numpy(boxes), torch.from_numpy(masks))


def scene_for(rng: np.random.Generator, stage: Stage) -> Scene:
    """A broad scene that the stage's image size can show."""
    while True:
        scene = render_scene(rng, stage.image_size)
        side = float(np.median(np.sqrt(scene.masks.sum((1, 2)))))
        if len(scene.labels) <= stage.max_objects and side >= stage.min_side:
            return scene


def synthetic_batch(rng: np.random.Generator, stage: Stage) -> tuple[list[np.ndarray], list[Targets]]:
    """Images [H, W, 3] uint8 and their targets."""
    scenes = [scene_for(rng, stage) for _ in range(stage.batch)]
    return [s.image for s in scenes], [to_targets(s.labels, s.masks) for s in scenes]


class ExtraSet:
    """Random batches of a real COCO set, its objects labelled as blobs."""

    def __init__(self, annotations: Path, images: Path) -> None:
        self.coco_set = read_coco(annotations, images)
        self.datasets: dict[int, InstanceDataset] = {}

    def batch(self, rng: np.random.Generator, stage: Stage) -> tuple[list[np.ndarray], list[Targets]]:
        """As `synthetic_batch`; flipped, turned, scaled and, half the time, inverted."""
        side = stage.image_size
        if side not in self.datasets:
            transform = TrainTransform(side, scale=(0.7, 2.5), vertical_flip=0.5, quarter_turn=0.5)
            self.datasets[side] = InstanceDataset(self.coco_set, transform, seed=SEED)
        images, targets = [], []
        for index in rng.integers(len(self.coco_set), size=stage.batch):
            sample = self.datasets[side][Draw(int(index), int(rng.integers(2**31)))]
            height, width = sample.image.shape[1:]
            image = np.zeros((side, side, 3), dtype=np.uint8)
            image[:height, :width] = sample.image.permute(1, 2, 0).numpy()
            images.append(255 - image if rng.random() < 0.5 else image)
            masks = np.zeros((len(sample.labels), side, side), dtype=bool)
            masks[:, :height, :width] = sample.masks.numpy()
            labels = np.full(len(masks), SHAPE_NAMES.index("blob"), dtype=np.int64)
            targets.append(to_targets(labels, masks))
        return images, targets


def batches(first: int, rank: int, extra: ExtraSet | None) -> Iterator[tuple[list[np.ndarray], list[Targets]]]:
    """One batch per step from `first` on; each keyed by seed, step and rank alone."""
    for step in range(first, sum(stage.steps for stage in STAGES)):
        stage, _ = stage_at(step)
        rng = np.random.default_rng((SEED, step, rank))
        if extra is not None and rng.random() < stage.extra:
            yield extra.batch(rng, stage)
        else:
            yield synthetic_batch(rng, stage)


def normalise(images: list[np.ndarray], model: MaskDINO) -> Tensor:
    """[B, 3, H, W] float32 by the model's pixel statistics."""
    stacked = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float()
    return (stacked - torch.tensor(model.pixel_mean)[:, None, None]) / torch.tensor(model.pixel_std)[:, None, None]


def parameter_groups(model: PretrainingLoss) -> list[dict[str, object]]:
    """Matrices decay; biases, norms and embeddings do not."""
    named = list(model.model.named_parameters())
    decayed = [p for n, p in named if p.dim() > 1 and "embed" not in n]
    rest = [p for n, p in named if not (p.dim() > 1 and "embed" not in n)]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}]
    return groups + ([{"params": list(model.kinds.parameters()), "weight_decay": 0.0}] if model.kinds else [])


def train(args: argparse.Namespace) -> None:
    """Run the stages from wherever the checkpoint in `--out` stands."""
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
    """Train from `step` to `end` within one stage; the model is rebuilt so that its class head fits."""
    torch.manual_seed(SEED)
    model = build(1 if stage.is_class_agnostic else len(SHAPE_NAMES), stage.num_queries)
    criterion = Criterion(matcher=HungarianMatcher(num_points=768), num_points=768)
    module = PretrainingLoss(model, criterion, stage)
    optimizer = torch.optim.AdamW(parameter_groups(module), lr=stage.lr, betas=(0.9, 0.98))
    if state is not None:
        model.load_state_dict(fit_class_head(model.state_dict(), state["model"]))
        if module.kinds is not None and state.get("kinds"):
            module.kinds.load_state_dict(state["kinds"])
        optimizer.load_state_dict(moments_for(optimizer, state["optimizer"]))
    else:
        place_tokens(model)
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
    """The saved optimizer state without that of a class head of another size, which starts anew."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    fitting = {i: s for i, s in saved["state"].items() if s["exp_avg"].shape == parameters[i].shape}
    return {"state": fitting, "param_groups": optimizer.state_dict()["param_groups"]}


def checkpoint(module: PretrainingLoss, optimizer: torch.optim.Optimizer, step: int) -> dict[str, Any]:
    """Everything that going on needs."""
    kinds = module.kinds.state_dict() if module.kinds is not None else {}
    return {"model": module.model.state_dict(), "kinds": kinds, "optimizer": optimizer.state_dict(), "step": step}


def save(out: Path, module: PretrainingLoss, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Write the checkpoint whole or not at all."""
    torch.save(checkpoint(module, optimizer, step), out / "checkpoint.tmp")
    os.replace(out / "checkpoint.tmp", out / "checkpoint.pt")


def bundle(run: Path, out: Path) -> None:
    """Write the newest checkpoint of a run as the weights that the package ships."""
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
    """COCO figures of bundled weights, classes aside, on held-out broad scenes of `size` pixels."""
    model = load_bundled(path=weights).eval()
    stage = Stage(1, size, 1, 0.0, 0.0, 0, max_objects=100, min_side=8.0)
    truth: dict[str, list[Any]] = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "object"}]}
    results: list[dict[str, Any]] = []
    for image_id in range(1, count + 1):
        scene = scene_for(np.random.default_rng((SEED, 2**31, image_id)), stage)
        truth["images"].append({"id": image_id, "file_name": str(image_id), "height": size, "width": size})
        for mask in scene.masks:
            rle = encode_region(mask, 0, 0, size, size)
            box, area = (mask_utils.toBbox(rle).tolist(), int(mask.sum()))
            annotation = {"image_id": image_id, "category_id": 1, "segmentation": rle, "bbox": box, "area": area}
            truth["annotations"].append({"id": len(truth["annotations"]) + 1, "iscrowd": 0, **annotation})
        with torch.no_grad():
            predictions = model(normalise([scene.image], model))
        meta = ImageMeta(image_id, str(image_id), size, size, size, size)
        instances = model.instances(predictions, [meta], padded_size=(size, size), limits=DetectionLimits())[0]
        results += to_coco_results(instances, image_id, [1])
    return evaluate_coco(truth, results).to_dict()


def main() -> None:
    """Parse the command line and train or bundle."""
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
        figures = {size: evaluate(args.evaluate, size, 60)["segm"] for size in (128, 192, 256)}
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "evaluation.json").write_text(json.dumps(figures, indent=1))
        print(json.dumps(figures, indent=1))
    else:
        train(args)


if __name__ == "__main__":
    main()
