"""What one training step costs: processor time, peak memory and memory kept for the backward pass, method by method.

    python tools/bench_step.py                                  # timm ViT-S/16, 224 px, batch 8, rank 8
    python tools/bench_step.py --methods full lora peft_lora --repeats 5 --json FILE
    python tools/bench_step.py --model mask_dino                # this project's tiny Mask DINO on a ViT

Each measurement is a process of its own with one thread; rounds go through all methods, so that a slow spell of the
machine falls on every one of them. The time is the processor time of the median step (waiting for other work on the
machine does not count), of which the table shows the median over rounds. `kept` is the size of the distinct storages
that autograd keeps for the backward pass, parameters excluded: exact and independent of the device. `rss` is the peak
of the process, `+rss` its growth over the steps.
`peft_*` is LoRA and DoRA of Hugging Face's `peft` library, for comparison, where it is installed.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vispeft.peft import Adapter, DoRA, LoRA, Plan, inject, train_mode
from vispeft.structures import Targets

RANK, ALPHA, DROPOUT, WIDTH = 8, 16.0, 0.05, 64
VIT_SITES = "blocks.*.attn.qkv | blocks.*.attn.proj | blocks.*.mlp.fc1 | blocks.*.mlp.fc2"
VIT_ADAPTERS = "blocks.*.attn.proj | blocks.*.mlp.fc2"
PEFT_TARGETS = r"(.*\.)?blocks\.\d+\.(attn\.(qkv|proj)|mlp\.(fc1|fc2))"
MASK_DINO_HEADS = ("decoder.class_embed", "decoder.label_embed", "decoder.mask_embed", "decoder.bbox_embed")
DEFORMABLE = "**.sampling_offsets | **.value_proj"
PEFT_DEFORMABLE = r".*\.(sampling_offsets|value_proj)"
MACHINE = "2-core x86-64 cloud CPU, Intel Xeon (Sapphire Rapids class)"


@dataclass(frozen=True)
class Step:
    """One process's figures. Seconds are processor time of the median step; megabytes are MiB."""

    method: str
    trainable: int
    step_s: float
    forward_s: float
    kept_mb: float
    peak_rss_mb: float
    grown_rss_mb: float


def vit_plans() -> dict[str, Plan | None]:
    """The plans of the timm model by method name; None marks what is no plan of ours."""
    head = ("head.**",)
    return {
        "forward": None,
        "floor": None,
        "head": Plan.head_only(*head),
        "adapter": Plan({VIT_ADAPTERS: Adapter(width=WIDTH)}, head),
        "lora": Plan({VIT_SITES: LoRA(RANK, ALPHA)}, head),
        "lora_dropout": Plan({VIT_SITES: LoRA(RANK, ALPHA, dropout=DROPOUT)}, head),
        "lora_from_6": Plan({VIT_SITES.replace("*", "[6:]"): LoRA(RANK, ALPHA)}, head),
        "dora": Plan({VIT_SITES: DoRA(RANK, ALPHA)}, head),
        "full": Plan.full(),
        "peft_lora": None,
        "peft_lora_dropout": None,
        "peft_dora": None,
    }


def build_vit(method: str, args: argparse.Namespace) -> tuple[nn.Module, Callable[[], Tensor]]:
    """A timm classifier prepared for a method, and a function that gives its loss on one batch."""
    import timm

    model = timm.create_model(args.model, pretrained=False, img_size=args.image_size, num_classes=10)
    images = torch.randn(args.batch, 3, args.image_size, args.image_size)
    labels = torch.randint(0, 10, (args.batch,))
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
    return model, lambda: F.cross_entropy(model(images), labels)


def mask_dino_plans() -> dict[str, Plan | None]:
    """The plans of the segmentation model by method name."""
    heads = tuple(f"{head}.**" for head in MASK_DINO_HEADS)
    everywhere = " | ".join([DEFORMABLE, *(f"**.{site}" for site in VIT_SITES.split(" | "))])
    attention = "pixel_decoder.layers.*.self_attn | decoder.layers.*.self_attn | decoder.layers.*.cross_attn"
    return {
        "forward": None,
        "head": Plan.head_only(*heads),
        "adapter": Plan({attention: Adapter(reduction=4, act="relu")}, heads),
        "lora": Plan({DEFORMABLE: LoRA(RANK, ALPHA)}, heads),
        "lora_dropout": Plan({DEFORMABLE: LoRA(RANK, ALPHA, dropout=DROPOUT)}, heads),
        "lora_everywhere": Plan({everywhere: LoRA(RANK, ALPHA)}, heads),
        "full": Plan.full(),
        "peft_lora": None,
        "peft_lora_everywhere": None,
    }


def build_mask_dino(method: str, args: argparse.Namespace) -> tuple[nn.Module, Callable[[], Tensor]]:
    """The tiny Mask DINO on a ViT prepared for a method, and a function that gives its loss on one synthetic batch."""
    from vispeft.losses import Criterion, HungarianMatcher
    from vispeft.models import build_model

    side = args.image_size
    model = build_model("mask_dino", backbone="vit_tiny_patch16_224", num_classes=5, image_size=side, size="tiny")
    plan = mask_dino_plans()[method]
    if plan is not None:
        inject(model, plan)
        train_mode(model)
    elif method.startswith("peft_"):
        targets = PEFT_DEFORMABLE if method == "peft_lora" else f"{PEFT_DEFORMABLE}|{PEFT_TARGETS}"
        model = peft_model(model, targets, MASK_DINO_HEADS)
    else:
        model.requires_grad_(False)
    images = torch.randn(args.batch, 3, side, side)
    masks = torch.zeros(3, side, side, dtype=torch.bool)
    for index in range(3):
        masks[index, index * side // 4 : (index + 2) * side // 4, side // 4 : side // 2] = True
    boxes = torch.tensor([[0.375, 0.25 + 0.25 * index, 0.25, 0.5] for index in range(3)])
    targets = [Targets(torch.tensor([0, 1, 2]), boxes, masks)] * args.batch
    criterion = Criterion(matcher=HungarianMatcher())
    return model, lambda: torch.stack(list(criterion(model(images, targets), targets).values())).sum()


def peft_model(
    model: nn.Module, targets: str, heads: Sequence[str], dropout: float = 0.0, *, use_dora: bool = False
) -> nn.Module:
    """The same LoRA or DoRA by the `peft` library; heads are trained as they are."""
    import peft

    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=dropout, use_dora=use_dora, target_modules=targets)
    wrapped: nn.Module = peft.get_peft_model(model, config)
    for head in heads:
        model.get_submodule(head).requires_grad_(True)
    return wrapped


def keep_freed_memory() -> None:
    """Tells glibc to keep freed memory, else methods that free early pay page faults that others do not."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL("libc.so.6")
        max_mmaps, trim_threshold = -4, -1
        libc.mallopt(max_mmaps, 0)
        libc.mallopt(trim_threshold, 2**31 - 1)


def status_mb(field: str) -> float:
    """A memory figure of this process, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:"))


def kept_mb(model: nn.Module, loss: Callable[[], Tensor]) -> float:
    """MiB of distinct storages that one forward pass keeps for backward, parameters excluded."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        value = loss()
    del value
    return sum(kept.values()) / 2**20


def measure(method: str, args: argparse.Namespace) -> Step:
    """Trains a few steps in this process and takes the figures."""
    keep_freed_memory()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    build = build_mask_dino if args.model == "mask_dino" else build_vit
    model, loss = build(method, args)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4) if trained else None
    before = status_mb("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    steps, forwards = [], []
    for step in range(args.warmup + args.steps):
        start = time.process_time()
        with torch.set_grad_enabled(method != "forward"):
            value = loss()
        middle = time.process_time()
        if method != "forward":
            value.backward()
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if step >= args.warmup:
            steps.append(time.process_time() - start)
            forwards.append(middle - start)
    peak = status_mb("VmHWM")
    return Step(
        method,
        sum(parameter.numel() for parameter in trained),
        round(statistics.median(steps), 4),
        round(statistics.median(forwards), 4),
        round(kept_mb(model, loss), 1) if method != "forward" else 0.0,
        round(peak, 1),
        round(peak - before, 1),
    )


def run_rounds(methods: list[str], args: argparse.Namespace) -> dict[str, list[Step]]:
    """Every method in a process of its own, round after round."""
    found: dict[str, list[Step]] = {method: [] for method in methods}
    options = [
        f"--{name}={getattr(args, name.replace('-', '_'))}"
        for name in ("model", "image-size", "batch", "steps", "warmup")
    ]
    for number in range(args.repeats):
        for method in methods:
            command = [sys.executable, __file__, "--child", method, *options]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            line = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
            found[method].append(Step(**json.loads(line.splitlines()[-1])))
            print(f"round {number + 1}/{args.repeats} {found[method][-1]}", file=sys.stderr, flush=True)
    return found


def table(found: dict[str, list[Step]]) -> str:
    """Medians over the rounds, with the range of the step time."""
    full = statistics.median(step.step_s for step in found["full"]) if "full" in found else float("nan")
    lines = [
        f"{'method':18} {'trainable':>11} {'step s':>7} {'range':>13} {'/full':>6} {'kept':>7} {'rss':>7} {'+rss':>7}"
    ]
    for method, steps in found.items():
        seconds = [step.step_s for step in steps]
        middle = statistics.median(seconds)
        memory = [
            statistics.median(values)
            for values in zip(*((s.kept_mb, s.peak_rss_mb, s.grown_rss_mb) for s in steps), strict=True)
        ]
        lines.append(
            f"{method:18} {steps[0].trainable:>11,} {middle:>7.3f} {min(seconds):>6.3f}-{max(seconds):<6.3f} "
            f"{middle / full:>6.3f} {memory[0]:>7.1f} {memory[1]:>7.0f} {memory[2]:>7.0f}"
        )
    return "\n".join(lines)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_small_patch16_224", help="a timm ViT, or mask_dino")
    parser.add_argument("--methods", nargs="+", help="default: all of the model's that can run here")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Runs the rounds, or one measurement where `--child` asks for it."""
    args = parse_arguments()
    if args.child:
        print(json.dumps(asdict(measure(args.child, args))))
        return
    plans = mask_dino_plans() if args.model == "mask_dino" else vit_plans()
    methods = args.methods or list(plans)
    unknown = [method for method in methods if method not in plans]
    if unknown:
        sys.exit(f"`--methods` must be some of {', '.join(plans)}, but has {', '.join(unknown)}.")
    load_before = os.getloadavg()[0]
    found = run_rounds(methods, args)
    print(table(found))
    if args.json:
        versions = {
            name: version(name)
            for name in ("torch", "timm", "peft")
            if name != "peft" or any(method.startswith("peft_") for method in found)
        }
        settings = {
            name: getattr(args, name) for name in ("model", "image_size", "batch", "steps", "warmup", "repeats")
        }
        report = {
            "command": " ".join(["python", "tools/bench_step.py", *sys.argv[1:]]),
            "machine": MACHINE,
            # how many processes ran or waited over the last minute: more than cores is a busy machine
            "load_average": {"before": round(load_before, 1), "after": round(os.getloadavg()[0], 1)},
            **settings,
            "rank": RANK,
            "versions": versions,
            "rounds": {method: [asdict(step) for step in steps] for method, steps in found.items()},
        }
        args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
