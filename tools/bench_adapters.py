"""Measure several LoRA adapters on one base: an adapter for each image of a batch, and the switch between adapters.

    python tools/bench_adapters.py                                       # timm ViT-S/16, 224 px, batch 8, rank 8
    python tools/bench_adapters.py --json tools/results/adapters_cpu.json

Every round times all cases in turn, so that a slow phase of the machine affects all of them; the table has the medians
of the processor time on one thread, which excludes other programs. Each adapter has LoRA on every linear map of the
blocks and trains the head in full. `lora_segments` is compared with the plain formula, one adapter after the other, at
the sites of the model.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from vispeft_kernels.lora import lora_add, lora_segments

import vispeft as vp

SITES = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
SCALE = 0.5


def build(model: str, size: int) -> nn.Module:
    """Return the base for images of a size, with random weights, the same at each call."""
    torch.manual_seed(0)
    base: nn.Module = timm.create_model(model, num_classes=20, img_size=size).eval()
    return base


def write_adapters(model: str, size: int, rank: int, count: int, folder: Path) -> list[Path]:
    """Write adapter files with random values."""
    plan = vp.Plan({f"blocks.*.{site}": vp.LoRA(rank) for site in SITES}, ["head"])
    paths = []
    for index in range(count):
        single = build(model, size)
        vp.inject(single, plan)
        torch.manual_seed(1 + index)
        with torch.no_grad():
            for parameter in single.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.02 * torch.randn_like(parameter))
        paths.append(folder / f"{index}.safetensors")
        vp.save_adapter(single, paths[-1])
    return paths


def medians_ms(cases: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the median milliseconds of each case over interleaved rounds, after one that does not count."""
    times: dict[str, list[float]] = defaultdict(list)
    for _ in range(rounds + 1):
        for name, case in cases.items():
            start = time.process_time()
            case()
            times[name].append(1000 * (time.process_time() - start))
    return {name: round(statistics.median(each[1:]), 3) for name, each in times.items()}


def model_cases(model: str, rank: int, batch: int, size: int, folder: Path) -> dict[str, Callable[[], object]]:
    """Return passes over a batch, and switches."""
    paths = write_adapters(model, size, rank, batch, folder)
    base, one, many = (build(model, size) for _ in range(3))
    vp.load_adapter(one, paths[0])
    names = [path.stem for path in paths]
    for name, path in zip(names, paths, strict=True):
        vp.load_adapter(many, path, name=name)
    images = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))
    switches = iter(range(10**9))

    def run(network: nn.Module, per_image: list[str | None] | None = None) -> Tensor:
        with torch.no_grad(), nullcontext() if per_image is None else vp.adapter_per_image(network, per_image):
            result: Tensor = network(images)
        return result

    def run_active(active: str | dict[str, float]) -> Tensor:
        vp.set_adapters(many, active)
        return run(many)

    halves = [names[0] if index < batch // 2 else None for index in range(batch)]
    return {
        "base": lambda: run(base),
        "one adapter, without a name": lambda: run(one),
        "one adapter of several": lambda: run_active(names[0]),
        "an adapter for each image": lambda: run(many, list(names)),
        "an adapter for half of the images": lambda: run(many, halves),
        "two adapters mixed": lambda: run_active({names[0]: 0.7, names[1]: -0.3}),
        "switch": lambda: vp.set_adapters(many, names[next(switches) % batch]),
    }


def segment_cases(rows: int, inputs: int, outputs: int, rank: int, runs: int) -> dict[str, Callable[[], object]]:
    """Return forward and backward passes of the update of rows of several adapters."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).requires_grad_()

    y, x, grad = draw(runs * rows, outputs), draw(runs * rows, inputs), torch.ones(runs * rows, outputs)
    factors = [(draw(rank, inputs), draw(outputs, rank)) for _ in range(runs)]
    lengths, leaves = [rows] * runs, [y, x, *(factor for pair in factors for factor in pair)]

    def plain() -> Tensor:
        pieces = zip(torch.split(y, lengths), torch.split(x, lengths), factors, strict=True)
        return torch.cat([of_y + SCALE * F.linear(F.linear(of_x, a), b) for of_y, of_x, (a, b) in pieces])

    def ours() -> Tensor:
        return lora_segments(y, x, factors, [SCALE] * runs, lengths)

    def single() -> Tensor:
        return lora_add(y, x, *factors[0], SCALE)

    def both_passes(function: Callable[[], Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(function(), leaves, grad, allow_unused=True)

    return {
        "plain formula, forward": torch.no_grad()(plain),
        "lora_segments, forward": torch.no_grad()(ours),
        "lora_add of one adapter, forward": torch.no_grad()(single),
        "plain formula, both passes": both_passes(plain),
        "lora_segments, both passes": both_passes(ours),
        "lora_add of one adapter, both passes": both_passes(single),
    }


def processor() -> str:
    """Return the name of the processor, where Linux tells it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown processor")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_small_patch16_224", help="a plain ViT of timm")
    parser.add_argument("--batch", type=int, default=8, help="images, each with its own adapter")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path, help="file for the results")
    args = parser.parse_args()
    if args.batch < 2:
        parser.error("--batch must be at least 2: two adapters are mixed")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        passes = medians_ms(model_cases(args.model, args.rank, args.batch, args.image_size, Path(folder)), args.rounds)
    width = build(args.model, args.image_size).get_parameter("pos_embed").shape[2]
    tokens = (args.image_size // 16) ** 2 + 1
    sizes = {"qkv": (width, 3 * width), "proj": (width, width), "fc1": (width, 4 * width), "fc2": (4 * width, width)}
    segments = {
        name: medians_ms(segment_cases(tokens, *size, args.rank, args.batch), 3 * args.rounds)
        for name, size in sizes.items()
    }
    ratio = passes["an adapter for each image"] / passes["one adapter of several"]
    results = {
        "machine": f"{platform.machine()}, {processor()}, 1 thread, torch {torch.__version__}",
        "options": {key: value for key, value in vars(args).items() if key != "json"},
        "median_ms": passes,
        "each_image_over_one_adapter": round(ratio, 3),
        "segments_median_ms": segments,
    }
    for title, table in (("", passes), *((f"{name}: ", each) for name, each in segments.items())):
        for name, value in table.items():
            print(f"{title + name:50} {value:9.3f} ms")
    print(f"{'each image over one adapter':50} {ratio:9.3f}")
    if args.json is not None:
        args.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
