#!/usr/bin/env python
"""Predict the memory of a training step of Mask DINO on a GPU, without a GPU.

    python tools/estimate_memory.py                                # ViT-L, 1024 px, batch 2, bf16
    python tools/estimate_memory.py --backbone vit_base_patch16_224 --methods full lora_everywhere --json FILE

The forward pass and the losses run on torch's fake tensors, which have a shape, a dtype and a device but no data, with
CUDA's rules for mixed precision. Every storage is counted during its lifetime. `held` is the memory in use after the
losses: weights, AdamW's moments, and tensors kept for the backward pass. `peak` is the maximum until then. The memory
that the backward pass adds is not included: gradients, as many as weights for full fine-tuning, and one block at a time
with recomputation. Workspaces of libraries are not included either. `bench_step.py --device cuda` measures all of it.

Assumptions: attention by a kernel that keeps its inputs, its output and one number per query; Triton's deformable
attention; LoRA computed by torch, which keeps the same tensors as its Triton kernels. Queries are matched to the three
targets of an image in order, because fake costs have no values.
"""

from __future__ import annotations

import argparse
import json
import sys
import traceback
import weakref
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import bench_step_models
import torch
import torch.nn.functional as F
import vispeft_kernels.deformable
import vispeft_kernels.lora
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from vispeft.losses.matcher import Match
from vispeft.models import SegmentationModel, build_model
from vispeft.structures import LayerPredictions, Targets

METHODS = (
    "full",
    "full_recompute",
    "lora_everywhere",
    "lora_everywhere_recompute",
    "lora_last_quarter",
    "lora_last_quarter_recompute",
)


@dataclass(frozen=True)
class Held:
    """MiB on the GPU in one forward pass; see the docstring of this module."""

    method: str
    trainable: int
    weights_mb: float
    moments_mb: float
    kept_mb: float
    held_mb: float
    peak_mb: float


class Alive(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counter of the bytes in use by new storages, by the code line that created them. others: tensors to ignore"""

    def __init__(self, others: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.others = {tensor.untyped_storage()._cdata for tensor in others}
        self.now = self.most = 0
        self.places: dict[int, tuple[int, str]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            if isinstance(tensor, Tensor) and tensor.device.type == "cuda":
                self._see(tensor.untyped_storage(), f"{list(tensor.shape)} {tensor.dtype} of {func}")
        return out

    def _see(self, storage: torch.UntypedStorage, what: str) -> None:
        if (key := storage._cdata) in self.places or key in self.others:
            return
        frames = [frame for frame in traceback.extract_stack() if "/vispeft" in frame.filename]
        place = f", {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
        self.places[key] = storage.nbytes(), what + place
        self.now += storage.nbytes()
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.now -= self.places.pop(key)[0]

    def largest(self, most: int) -> list[str]:
        """Return the code lines with the most memory in use."""
        summed: Counter[str] = Counter()
        for size, place in self.places.values():
            summed[place] += size
        return [f"{size / 2**20:9.1f} {place}" for place, size in summed.most_common(most)]


class _KeepingAttention(torch.autograd.Function):
    """Forward pass of attention that keeps its inputs and output. There is no backward, which is not predicted."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, out, q.new_empty(q.shape[:-1], dtype=torch.float32))
        return out


def attention(q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> Tensor:
    """Return attention with the memory of a memory-efficient kernel, in the dtype of mixed precision."""
    out: Tensor = _KeepingAttention.apply(*(x.to(torch.get_autocast_dtype("cuda")) for x in (q, k, v)))
    return out


class InOrder(nn.Module):
    """Matcher that assigns the first queries of each layer to the targets in order, whatever the number of points."""

    def __init__(self, *, num_points: int) -> None:
        del num_points
        super().__init__()

    def forward(
        self, layers: Sequence[LayerPredictions], mask_features: Tensor, targets: Sequence[Targets]
    ) -> list[list[Match]]:
        """Match like `HungarianMatcher`, but without costs."""
        return [[Match(torch.arange(len(one)), torch.arange(len(one)))] * len(layers) for one in targets]


def build_fake_model(*args: Any, **kwargs: Any) -> SegmentationModel:
    """Return a model of fake tensors on a GPU. It is built with real tensors first, because timm reads values."""
    with unset_fake_temporarily():
        model = build_model(*args, **kwargs)
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(torch.empty(parameter.shape, device="cuda"))
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device="cuda")
    # the model is already on its device, and fake parameters cannot be moved
    model.to = lambda *_, **__: model  # type: ignore[method-assign]
    return model


def pretend() -> None:
    """Patch torch and this project for fake tensors, in this process only."""
    bench_step_models.build_model = build_fake_model  # type: ignore[attr-defined]
    F.scaled_dot_product_attention = attention  # type: ignore[assignment]
    bench_step_models.HungarianMatcher = InOrder  # type: ignore[attr-defined, assignment]
    bench_step_models.autocast = lambda args: nullcontext()  # type: ignore[assignment, return-value]
    vispeft_kernels.lora._choose = lambda *_, **__: "torch"
    vispeft_kernels.deformable._choose = lambda *_, **__: "triton"
    # torch.autocast requires a device that exists
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    torch.autocast_increment_nesting()  # keeps the 16-bit copies of weights, as within one `with`


def predict(method: str, args: argparse.Namespace) -> tuple[Held, list[str]]:
    """Return the memory of one method, and the code lines with the most memory in use."""
    with FakeTensorMode():
        measured = bench_step_models.build_mask_dino(method, args)
        own = [*measured.model.parameters(), *measured.model.buffers()]
        weights = sum(tensor.nbytes for tensor in own)
        trained = [tensor for tensor in own if tensor.requires_grad]
        moments = 2 * sum(parameter.nbytes for parameter in trained)
        alive = Alive(own)
        with alive:
            loss = measured.loss()
        torch.clear_autocast_cache()  # as at the end of the `with` of a step
        held = Held(
            method,
            sum(parameter.numel() for parameter in trained),
            *(round(size / 2**20, 1) for size in (weights, moments, alive.now)),
            *(round((weights + moments + size) / 2**20, 1) for size in (alive.now, alive.most)),
        )
        places = alive.largest(args.places)
        del loss
    return held, places


def main() -> None:
    """Predict the memory of each method and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="vit_large_patch16_224", help="a timm ViT")
    parser.add_argument("--size", default="base", help="size of pixel decoder and decoder: tiny or base")
    parser.add_argument("--image-size", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument(
        "--places", type=int, default=0, help="also print this number of code lines with the most memory in use"
    )
    parser.add_argument("--json", type=Path, help="write all measurements to this file")
    args = parser.parse_args(namespace=argparse.Namespace(device="cuda"))
    known = [
        name for name in bench_step_models.mask_dino_plans(1) if not name.startswith("peft_") and name != "forward"
    ]
    if unknown := [method for method in args.methods if method not in known]:
        sys.exit(f"`--methods` must be some of {', '.join(known)}, but has {', '.join(unknown)}.")
    found = []
    pretend()
    for method in args.methods:
        held, places = predict(method, args)
        found.append(held)
        print(f"{held}", *places, sep="\n", file=sys.stderr)
    full = next((one.peak_mb for one in found if one.method == "full"), float("nan"))
    width = max(len("method"), *(len(one.method) for one in found))
    print(f"{'method':{width}} {'trainable':>11} {'kept':>8} {'held':>8} {'peak':>8} {'/full':>6}")
    for one in found:
        print(
            f"{one.method:{width}} {one.trainable:>11,} {one.kept_mb:>8.0f} {one.held_mb:>8.0f} {one.peak_mb:>8.0f} "
            f"{one.peak_mb / full:>6.3f}"
        )
    if args.json:
        settings = {name: getattr(args, name) for name in ("backbone", "size", "image_size", "batch")}
        report = {
            "command": " ".join(["python", "tools/estimate_memory.py", *sys.argv[1:]]),
            "machine": "none: predicted",
            "precision": "bf16",
            "versions": {name: version(name) for name in ("torch", "timm")},
            **settings,
            "methods": [asdict(one) for one in found],
        }
        args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
