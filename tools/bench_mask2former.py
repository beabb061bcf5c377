"""Measure the training step of Mask2Former with LoRA beside transformers' model with LoRA of the `peft` library.

    python tools/bench_mask2former.py                      # mini: Swin of width 32, 256 px, batch 2, 2048 points
    python tools/bench_mask2former.py --preset mini swin-t --rounds 5 --json tools/results/mask2former_cpu.json

Both models have the same sizes, the same LoRA (query and value of the backbone, all projections of the deformable
attention; heads in full) and the same batches. They take turns in one process on one thread, and the time is processor
time, so that a busy machine affects both alike. `kept` is the exact size of the distinct storages that autograd keeps
for the backward pass, without parameters. Needs transformers and peft.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from bench_step import CpuMeter, kept_mb
from torch import Tensor, nn

from vispeft.models import LossSettings, SegmentationModel, build_model
from vispeft.peft import LoRA, Plan, inject, train_mode
from vispeft.structures import Batch, Targets
from vispeft.training.processor import describe_cpu
from vispeft.training.step import LossModule, SealedBatch

RANK, ALPHA = 8, 16
CLASSES, INSTANCES = 10, 5
DEFORMABLE = ("value_proj", "sampling_offsets", "attention_weights", "output_proj")
PEFT_TARGETS = (
    r".*pixel_level_module\.encoder\..*\.attention(\.self)?\.(q_proj|v_proj|query|value)"
    rf"|.*pixel_level_module\.decoder\.encoder\.layers\.\d+\.self_attn\.({'|'.join(DEFORMABLE)})"
)


@dataclass(frozen=True)
class Preset:
    """Sizes of both models. decoder_layers: layers of the decoder, one less than transformers counts"""

    width: int
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    dim: int
    num_heads: int
    pixel_decoder_layers: int
    decoder_layers: int
    pixel_decoder_ffn_dim: int
    ffn_dim: int
    num_queries: int
    num_points: int


_SHARED_SIZES = (
    *("dim", "num_heads", "ffn_dim", "pixel_decoder_ffn_dim"),
    *("num_queries", "pixel_decoder_layers", "decoder_layers"),
)
PRESETS = {
    "mini": Preset(32, (1, 1, 2, 1), (1, 2, 4, 8), 128, 4, 3, 3, 256, 512, 50, 2048),
    "swin-t": Preset(96, (2, 2, 6, 2), (3, 6, 12, 24), 256, 8, 6, 9, 1024, 2048, 100, 12544),
}


@dataclass
class Measured:
    """A model with its optimiser and the loss on one of its batches."""

    model: nn.Module
    loss: Callable[[int], Tensor]
    optimizer: torch.optim.Optimizer

    def step(self, number: int, now: Callable[[], float]) -> float:
        """Return the processor time of one step in seconds."""
        start = now()
        self.loss(number).backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return now() - start

    @property
    def trainable(self) -> int:
        """Return the number of trained parameters."""
        return sum(parameter.numel() for parameter in self.model.parameters() if parameter.requires_grad)


def measured(model: nn.Module, loss: Callable[[int], Tensor]) -> Measured:
    """Return a model with AdamW over its trained parameters."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return Measured(model, loss, torch.optim.AdamW(trained, lr=1e-4))


def scenes(args: argparse.Namespace, seed: int) -> tuple[Tensor, list[Targets]]:
    """Return images of noise, and targets that are ellipses."""
    side = args.image_size
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    images = torch.randn(args.batch, 3, side, side, generator=generator)
    targets = []
    for _ in range(args.batch):
        boxes = torch.rand(INSTANCES, 4, generator=generator) * torch.tensor([1, 1, 0.4, 0.4])
        boxes = boxes + torch.tensor([0, 0, 0.1, 0.1])
        cx, cy, width, height = (side * boxes).T[:, :, None, None]
        masks = ((x - cx) / width * 2) ** 2 + ((y - cy) / height * 2) ** 2 <= 1
        targets.append(Targets(torch.randint(0, CLASSES, (INSTANCES,), generator=generator), boxes, masks))
    return images, targets


def ours(preset: Preset, args: argparse.Namespace) -> Measured:
    """Build our model with its plan."""
    swin = {"embed_dim": preset.width, "depths": preset.depths, "num_heads": preset.heads, "drop_path_rate": 0.0}
    base: SegmentationModel = build_model(
        "mask2former",
        backbone="swin_tiny_patch4_window7_224",
        backbone_options=swin,
        num_classes=CLASSES,
        mask_dim=preset.dim,
        **{name: getattr(preset, name) for name in _SHARED_SIZES},
    )
    deltas = {
        "@encoder.qkv": LoRA(RANK, ALPHA, parts="qv"),
        " | ".join(f"@deformable.{name}" for name in DEFORMABLE): LoRA(RANK, ALPHA),
    }
    inject(base, Plan(deltas, train=["@heads"]), roles=base.roles())
    train_mode(base)
    step = LossModule(base, base.criterion(LossSettings(num_points=preset.num_points)))
    batches = []
    for seed in range(args.batches):
        images, targets = scenes(args, seed)
        batches.append(SealedBatch(Batch(images, tuple(targets), ())))
    return measured(base, lambda number: torch.stack(list(step(batches[number % len(batches)]).values())).sum())


def theirs(preset: Preset, args: argparse.Namespace) -> Measured:
    """Build transformers' model with LoRA of the `peft` library."""
    import peft
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

    backbone = SwinConfig(
        image_size=args.image_size,
        embed_dim=preset.width,
        depths=list(preset.depths),
        num_heads=list(preset.heads),
        drop_path_rate=0.0,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = Mask2FormerConfig(
        backbone_config=backbone,
        feature_size=preset.dim,
        mask_feature_size=preset.dim,
        hidden_dim=preset.dim,
        encoder_feedforward_dim=preset.pixel_decoder_ffn_dim,
        dim_feedforward=preset.ffn_dim,
        encoder_layers=preset.pixel_decoder_layers,
        decoder_layers=preset.decoder_layers + 1,
        num_attention_heads=preset.num_heads,
        num_queries=preset.num_queries,
        train_num_points=preset.num_points,
        num_labels=CLASSES,
    )
    lora = peft.LoraConfig(
        r=RANK,
        lora_alpha=ALPHA,
        target_modules=PEFT_TARGETS,
        modules_to_save=["class_predictor", "mask_embedder"],
    )
    model: Any = peft.get_peft_model(Mask2FormerForUniversalSegmentation(config), lora)
    model.train()
    batches = []
    for seed in range(args.batches):
        images, targets = scenes(args, seed)
        masks, labels = [t.masks.float() for t in targets], [t.labels for t in targets]
        batches.append({"pixel_values": images, "mask_labels": masks, "class_labels": labels})
    return measured(model, lambda number: model(**batches[number % len(batches)]).loss)


def compare(name: str, args: argparse.Namespace, now: Callable[[], float]) -> dict[str, Any]:
    """Return the measurements of both models at the sizes of a preset."""
    torch.manual_seed(0)
    load_before = os.getloadavg()[0]
    models = {"vispeft": ours(PRESETS[name], args), "transformers": theirs(PRESETS[name], args)}
    kept: dict[str, float] = {}
    for key, model in models.items():
        kept[key] = round(kept_mb(model.model, partial(model.loss, 0)), 1)
    steps: dict[str, list[float]] = {key: [] for key in models}
    for number in range(args.warmup + args.rounds):
        # who goes first alternates
        for key in list(models)[:: 1 - 2 * (number % 2)]:
            seconds = models[key].step(number, now)
            if number >= args.warmup:
                steps[key].append(round(seconds, 4))
    medians = {key: round(statistics.median(values), 4) for key, values in steps.items()}
    return {
        "preset": name,
        "image_size": args.image_size,
        "batch": args.batch,
        "rank": RANK,
        "load_average": {"before": round(load_before, 1), "after": round(os.getloadavg()[0], 1)},
        "trainable": {key: model.trainable for key, model in models.items()},
        "step_cpu_s": steps,
        "median_step_cpu_s": medians,
        "kept_mb": kept,
        "step_ratio": round(medians["vispeft"] / medians["transformers"], 3),
        "kept_ratio": round(kept["vispeft"] / kept["transformers"], 3),
    }


def main() -> None:
    """Measure both models, print their ratios and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, nargs="+", default=["mini"])
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--batches", type=int, default=4, help="number of different batches")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write all measurements to this file")
    args = parser.parse_args()
    meter = CpuMeter()
    report = {
        "command": " ".join(["python", "tools/bench_mask2former.py", *sys.argv[1:]]),
        "machine": describe_cpu(),
        "versions": {name: version(name) for name in ("torch", "timm", "transformers", "peft")},
        "comparisons": [compare(name, args, meter.now) for name in args.preset],
    }
    print(json.dumps(report, indent=1))
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
