"""Measure the cost of one training step by method: time, peak memory, and memory kept for the backward pass.

    python tools/bench_step.py                                  # timm ViT-S/16, 224 px, batch 8, rank 8
    python tools/bench_step.py --methods full lora peft_lora --repeats 5 --json FILE
    python tools/bench_step.py --model mask_dino                # this project's tiny Mask DINO on a ViT
    python tools/bench_step.py --model mask_dino --backbone vit_large_patch16_224 --size base --image-size 1024 \
        --batch 2 --precision bf16 --device cuda                # a realistic size on a GPU

Each measurement is a separate process. Every round measures all methods, so that a slow phase of the machine affects
all of them. On the CPU, one thread is used and the time is the processor time of the median step, which excludes other
programs. On a GPU, it is the wall time of the median step, with an idle device before and after. The table shows the
median over rounds.

`peak` is the peak memory of the process on the CPU, and of torch's allocations on a GPU; `+peak` is its growth over the
steps. `kept` is the exact size of the distinct storages that autograd keeps for the backward pass, without parameters;
with `--precision bf16`, it includes the 16-bit copies of the weights. `*_recompute` recomputes blocks, decoder layers
and mask features in the backward pass (`model.activation_checkpointing`). `floor` is the time that LoRA in all blocks
cannot get below: of a ViT, nothing is trained and the gradient goes to the images; of Mask DINO, it is LoRA on
deformable attention, and the gradient goes on to the tokens before the first block. `peft_*` is LoRA or DoRA of Hugging
Face's `peft` library, for comparison, if it is installed.
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
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch
from bench_step_models import RANK, add_model_options, build_mask_dino, build_vit, mask_dino_plans, vit_plans
from torch import Tensor, nn

from vispeft.training.processor import describe_cpu

OPTIONS = (
    "model",
    "backbone",
    "size",
    "image_size",
    "batch",
    "device",
    "precision",
    "steps",
    "warmup",
)


@dataclass(frozen=True)
class Step:
    """Measurements of one process: seconds of the median step, MiB."""

    method: str
    trainable: int
    step_s: float
    forward_s: float
    kept_mb: float
    peak_mb: float
    grown_mb: float


def keep_freed_memory() -> None:
    """Make glibc keep freed memory, because methods that free memory early would otherwise have more page faults."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL("libc.so.6")
        max_mmaps, trim_threshold = -4, -1
        libc.mallopt(max_mmaps, 0)
        libc.mallopt(trim_threshold, 2**31 - 1)


def status_mb(field: str) -> float:
    """Return a memory measurement of this process, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:"))


def kept_mb(model: nn.Module, loss: Callable[[], Tensor]) -> float:
    """Return the MiB of distinct storages that one forward pass keeps for backward, without parameters."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}
    alive: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters and storage.data_ptr() not in kept:
            kept[storage.data_ptr()] = storage.nbytes()
            # the address of a freed storage would be reused by another one
            alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss()
    return sum(kept.values()) / 2**20


class CpuMeter:
    """Processor time and peak memory of the process."""

    def __init__(self) -> None:
        keep_freed_memory()
        torch.set_num_threads(1)

    def now(self) -> float:
        """Return seconds of processor time."""
        return time.process_time()

    def start_mb(self) -> float:
        """MiB in use; the peak is counted from here."""
        Path("/proc/self/clear_refs").write_text("5")
        return status_mb("VmRSS")

    def peak_mb(self) -> float:
        """The most MiB in use since."""
        return status_mb("VmHWM")


class CudaMeter:
    """Wall time with an idle device before and after, and peak memory of torch's allocations."""

    def now(self) -> float:
        """Return seconds, after the device has finished its work."""
        torch.cuda.synchronize()
        return time.perf_counter()

    def start_mb(self) -> float:
        """MiB in use; the peak is counted from here."""
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / 2**20

    def peak_mb(self) -> float:
        """The most MiB in use since."""
        return torch.cuda.max_memory_allocated() / 2**20


def measure(method: str, args: argparse.Namespace) -> Step:
    """Train a few steps in this process and measure them."""
    meter = CudaMeter() if args.device == "cuda" else CpuMeter()
    torch.manual_seed(0)
    build = build_mask_dino if args.model == "mask_dino" else build_vit
    measured = build(method, args)
    model, loss = measured.model, measured.loss
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4) if trained else None
    before = meter.start_mb()
    steps, forwards = [], []
    for step in range(args.warmup + args.steps):
        start = meter.now()
        with torch.set_grad_enabled(method != "forward"):
            value = loss()
        middle = meter.now()
        if method != "forward":
            value.backward()  # type: ignore[no-untyped-call]
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if step >= args.warmup:
            steps.append(meter.now() - start)
            forwards.append(middle - start)
    peak = meter.peak_mb()
    return Step(
        method,
        sum(parameter.numel() for parameter in trained),
        round(statistics.median(steps), 4),
        round(statistics.median(forwards), 4),
        round(kept_mb(model, loss), 1) if method != "forward" else 0.0,
        round(peak, 1),
        round(peak - before, 1),
    )


def run_rounds(methods: list[str], args: argparse.Namespace) -> tuple[dict[str, list[Step]], dict[str, str]]:
    """Measure each method in its own process, in rounds. Also return the failure of each method that is left out."""
    found: dict[str, list[Step]] = {method: [] for method in methods}
    left_out: dict[str, str] = {}
    options = [f"--{name.replace('_', '-')}={getattr(args, name)}" for name in OPTIONS]
    for number in range(args.repeats):
        for method in list(found):
            command = [sys.executable, __file__, "--child", method, *options]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"} if args.device == "cpu" else None
            run = subprocess.run(command, capture_output=True, text=True, env=environment)
            if run.returncode:
                reason = (run.stderr.strip().splitlines() or [f"exit status {run.returncode}"])[-1]
                print(f"{method} is left out: {reason}", file=sys.stderr, flush=True)
                left_out[method] = reason
                del found[method]
                continue
            found[method].append(Step(**json.loads(run.stdout.splitlines()[-1])))
            print(f"round {number + 1}/{args.repeats} {found[method][-1]}", file=sys.stderr, flush=True)
    return found, left_out


def table(found: dict[str, list[Step]]) -> str:
    """Return a table of medians over the rounds, with time and peak also relative to full fine-tuning."""
    full = found.get("full", [])
    full_s, full_mb = (
        statistics.median(values) if full else float("nan")
        for values in ([step.step_s for step in full], [step.peak_mb for step in full])
    )
    width = max(map(len, ["method", *found]))
    lines = [
        f"{'method':{width}} {'trainable':>11} {'step s':>7} {'range':>13} {'/full':>6} {'kept':>8} {'peak':>8} "
        f"{'/full':>6} {'+peak':>8}"
    ]
    for method, steps in found.items():
        seconds = [step.step_s for step in steps]
        middle = statistics.median(seconds)
        kept, peak, grown = (
            statistics.median(values)
            for values in zip(*((s.kept_mb, s.peak_mb, s.grown_mb) for s in steps), strict=True)
        )
        lines.append(
            f"{method:{width}} {steps[0].trainable:>11,} {middle:>7.3f} {min(seconds):>6.3f}-{max(seconds):<6.3f} "
            f"{middle / full_s:>6.3f} {kept:>8.1f} {peak:>8.0f} {peak / full_mb:>6.3f} {grown:>8.0f}"
        )
    return "\n".join(lines)


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_options(parser)
    parser.add_argument("--methods", nargs="+", help="default: all methods of the model that can run here")
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write all measurements to this file")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Run the rounds, or one measurement in a child process."""
    args = parse_arguments()
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("`--device cuda` needs a CUDA GPU, but there is none. Leave the option out to measure on the CPU.")
    if args.child:
        print(json.dumps(asdict(measure(args.child, args))))
        return
    known = list(mask_dino_plans(1) if args.model == "mask_dino" else vit_plans())
    here = [method for method in known if not method.startswith("peft_") or find_spec("peft")]
    methods = args.methods or here
    unknown = [method for method in methods if method not in known]
    if unknown:
        sys.exit(f"`--methods` must be some of {', '.join(known)}, but has {', '.join(unknown)}.")
    load_before = os.getloadavg()[0]
    found, left_out = run_rounds(methods, args)
    if found:
        print(table(found))
    if args.json:
        versions = {
            name: version(name)
            for name in ("torch", "timm", "peft")
            if name != "peft" or any(method.startswith("peft_") for method in found)
        }
        settings = {name: getattr(args, name) for name in (*OPTIONS, "repeats")}
        report = {
            "command": " ".join(["python", "tools/bench_step.py", *sys.argv[1:]]),
            "machine": torch.cuda.get_device_name() if args.device == "cuda" else describe_cpu(),
            # mean number of running or waiting processes in the last minute; more than cores is a busy machine
            "load_average": {"before": round(load_before, 1), "after": round(os.getloadavg()[0], 1)},
            **settings,
            "rank": RANK,
            "versions": versions,
            "left_out": left_out,
            "rounds": {method: [asdict(step) for step in steps] for method, steps in found.items()},
        }
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    if left_out:
        sys.exit(f"Not measured: {', '.join(left_out)}.")


if __name__ == "__main__":
    main()
