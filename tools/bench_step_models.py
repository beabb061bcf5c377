"""Models that `bench_step.py` measures, by method name, each with a function that returns its loss on one batch."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vispeft.config.defaults import default_points
from vispeft.losses import HungarianMatcher
from vispeft.models import build_model
from vispeft.models.mask_dino.criterion import Criterion
from vispeft.peft import Adapter, DoRA, LoRA, Plan, inject, train_mode
from vispeft.structures import Batch, Targets
from vispeft.training.step import LossModule, SealedBatch

RANK, ALPHA, DROPOUT, WIDTH = 8, 16.0, 0.05, 64
VIT_SITES = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
VIT_ADAPTERS = ("attn.proj", "mlp.fc2")
PEFT_TARGETS = r"(.*\.)?blocks\.\d+\.(attn\.(qkv|proj)|mlp\.(fc1|fc2))"
MASK_DINO_HEADS = ("decoder.class_embed", "decoder.label_embed", "decoder.mask_embed", "decoder.bbox_embed")
MASK_DINO_ATTENTION = "pixel_decoder.layers.*.self_attn | decoder.layers.*.self_attn | decoder.layers.*.cross_attn"
DEFORMABLE = ("**.sampling_offsets", "**.value_proj")
PEFT_DEFORMABLE = r".*\.(sampling_offsets|value_proj)"
RECOMPUTE = "_recompute"
"""Suffix of the name of a method with `model.activation_checkpointing`."""


@dataclass(frozen=True)
class Measured:
    """A model on its device with float32 parameters, and its loss on one batch."""

    model: nn.Module
    loss: Callable[[], Tensor]


def blocks(sites: Sequence[str], which: str = "*", prefix: str = "") -> str:
    """Return the pattern of linear layers in some blocks of a ViT."""
    return " | ".join(f"{prefix}blocks.{which}.{site}" for site in sites)


def vit_plans() -> dict[str, Plan | None]:
    """Return the plans of the timm model by method name; None for a method that is not a plan."""
    head, everywhere = ("head.**",), blocks(VIT_SITES)
    return {
        "forward": None,
        "floor": None,
        "head": Plan.head_only(*head),
        "adapter": Plan({blocks(VIT_ADAPTERS): Adapter(width=WIDTH)}, head),
        "lora": Plan({everywhere: LoRA(RANK, ALPHA)}, head),
        "lora_dropout": Plan({everywhere: LoRA(RANK, ALPHA, dropout=DROPOUT)}, head),
        "lora_from_6": Plan({blocks(VIT_SITES, "[6:]"): LoRA(RANK, ALPHA)}, head),
        "dora": Plan({everywhere: DoRA(RANK, ALPHA)}, head),
        "full": Plan.full(),
        "peft_lora": None,
        "peft_lora_dropout": None,
        "peft_dora": None,
    }


def build_vit(method: str, args: argparse.Namespace) -> Measured:
    """Build a timm classifier for a method."""
    import timm

    model = timm.create_model(args.model, pretrained=False, img_size=args.image_size, num_classes=10).to(args.device)
    images = torch.randn(args.batch, 3, args.image_size, args.image_size, device=args.device)
    labels = torch.randint(0, 10, (args.batch,), device=args.device)
    plan = vit_plans()[method]
    if plan is not None:
        inject(model, plan)
        train_mode(model)
    elif method.startswith("peft_"):
        dropout = DROPOUT if method == "peft_lora_dropout" else 0.0
        model = peft_model(model, PEFT_TARGETS, ["head"], dropout, use_dora=method == "peft_dora")
    else:
        model.requires_grad_(False)
        images.requires_grad_(method == "floor")

    def loss() -> Tensor:
        with autocast(args):
            logits: Tensor = model(images)
        return F.cross_entropy(logits.float(), labels)

    return Measured(model, loss)


def mask_dino_plans(num_blocks: int) -> dict[str, Plan | None]:
    """Return the plans of the segmentation model on a ViT of `num_blocks` by method name."""
    heads = tuple(f"{head}.**" for head in MASK_DINO_HEADS)
    decoders = " | ".join(DEFORMABLE)
    everywhere = f"{decoders} | {blocks(VIT_SITES, prefix='**.')}"
    last_quarter = f"{decoders} | {blocks(VIT_SITES, f'[{num_blocks * 3 // 4}:]', prefix='**.')}"
    return {
        "forward": None,
        "floor": Plan({decoders: LoRA(RANK, ALPHA)}, heads),
        "head": Plan.head_only(*heads),
        "adapter": Plan({MASK_DINO_ATTENTION: Adapter(reduction=4, activation="relu")}, heads),
        "lora": Plan({decoders: LoRA(RANK, ALPHA)}, heads),
        "lora_dropout": Plan({decoders: LoRA(RANK, ALPHA, dropout=DROPOUT)}, heads),
        "lora_everywhere": Plan({everywhere: LoRA(RANK, ALPHA)}, heads),
        "lora_everywhere_recompute": Plan({everywhere: LoRA(RANK, ALPHA)}, heads),
        "lora_last_quarter": Plan({last_quarter: LoRA(RANK, ALPHA)}, heads),
        "lora_last_quarter_recompute": Plan({last_quarter: LoRA(RANK, ALPHA)}, heads),
        "full": Plan.full(),
        "full_recompute": Plan.full(),
        "peft_lora": None,
        "peft_lora_everywhere": None,
    }


def build_mask_dino(method: str, args: argparse.Namespace) -> Measured:
    """Build Mask DINO on a timm ViT for a method, with a synthetic batch."""
    side = args.image_size
    base = build_model("mask_dino", backbone=args.backbone, num_classes=5, image_size=side, size=args.size)
    base.to(args.device)
    plan = mask_dino_plans(num_blocks(base))[method]
    model: nn.Module = base
    if plan is not None:
        inject(model, plan)
        train_mode(model)
    elif method.startswith("peft_"):
        targets = PEFT_DEFORMABLE if method == "peft_lora" else f"{PEFT_DEFORMABLE}|{PEFT_TARGETS}"
        model = peft_model(model, targets, MASK_DINO_HEADS)
    else:
        model.requires_grad_(False)
    if method.endswith(RECOMPUTE):
        base.set_activation_checkpointing()
    if method == "floor":
        patches = next(module for name, module in base.named_modules() if name.endswith("patch_embed"))
        patches.register_forward_hook(lambda module, args, tokens: tokens.detach().requires_grad_())
    points = default_points(side)
    step = LossModule(model, Criterion(matcher=HungarianMatcher(num_points=points), num_points=points))
    batch = SealedBatch(Batch(torch.randn(args.batch, 3, side, side), (scene(side),) * args.batch, ()).to(args.device))

    def loss() -> Tensor:
        with autocast(args):
            return torch.stack(list(step(batch).values())).sum()

    return Measured(model, loss)


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of a model and its batch."""
    parser.add_argument("--model", default="vit_small_patch16_224", help="a timm ViT, or mask_dino")
    parser.add_argument("--backbone", default="vit_tiny_patch16_224", help="backbone of mask_dino: a timm ViT")
    parser.add_argument("--size", default="tiny", help="size of mask_dino's pixel decoder and decoder: tiny or base")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="bf16 is mixed precision")


def scene(side: int) -> Targets:
    """Return three overlapping boxes with filled masks."""
    masks = torch.zeros(3, side, side, dtype=torch.bool)
    for index in range(3):
        masks[index, index * side // 4 : (index + 2) * side // 4, side // 4 : side // 2] = True
    boxes = torch.tensor([[0.375, 0.25 + 0.25 * index, 0.25, 0.5] for index in range(3)])
    return Targets(torch.tensor([0, 1, 2]), boxes, masks)


def num_blocks(model: nn.Module) -> int:
    """Return the number of blocks of the ViT in a model, at least 1."""
    indices = ["0"] + [name.split("blocks.")[1].split(".")[0] for name, _ in model.named_modules() if "blocks." in name]
    return 1 + max(map(int, indices))


def autocast(args: argparse.Namespace) -> torch.autocast:
    """Return the context of mixed precision as in training, enabled by `--precision bf16`."""
    return torch.autocast(args.device, torch.bfloat16, enabled=args.precision == "bf16")


def peft_model(
    model: nn.Module, targets: str, heads: Sequence[str], dropout: float = 0.0, *, use_dora: bool = False
) -> nn.Module:
    """Add the same LoRA or DoRA with the `peft` library; heads are trained in full."""
    import peft

    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=dropout, use_dora=use_dora, target_modules=targets)
    wrapped: nn.Module = peft.get_peft_model(model, config)
    for head in heads:
        model.get_submodule(head).requires_grad_(True)
    return wrapped
