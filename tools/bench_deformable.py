"""Time deformable attention against `grid_sample` on the CPU: `python tools/bench_deformable.py [--json FILE]`.

Both run in turn in one process, with the given number of threads. Times are process time, which excludes other
programs: medians over rounds, with quartiles. Sampling locations are uniform over the levels, the worst case for
caches. Kept bytes are those that autograd saves for the backward pass.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from vispeft_kernels import deformable_attention
from vispeft_kernels.deformable.reference import deformable_attention_reference

Attention = Callable[[Tensor, list[tuple[int, int]], Tensor, Tensor], Tensor]
IMPLEMENTATIONS: dict[str, Attention] = {
    "grid_sample": deformable_attention_reference,
    "deformable_attention": deformable_attention,
}


@dataclass(frozen=True)
class Problem:
    name: str
    batch: int
    queries: int
    heads: int
    dim: int
    shapes: tuple[tuple[int, int], ...]
    points: int = 4


LARGE, SMALL = ((64, 64), (32, 32), (16, 16), (8, 8)), ((24, 24), (12, 12), (6, 6))
PROBLEMS = (
    Problem("encoder of a 512 px image", 1, 5440, 8, 32, LARGE),
    Problem("decoder of a 512 px image", 1, 300, 8, 32, LARGE),
    Problem("tiny encoder", 4, 756, 4, 32, SMALL),
    Problem("tiny decoder", 4, 100, 4, 32, SMALL),
    Problem("tiny encoder, batch 8", 8, 756, 4, 32, SMALL),
    Problem("tiny decoder, batch 8", 8, 160, 4, 32, SMALL),
)


@dataclass(frozen=True)
class Timing:
    problem: str
    implementation: str
    passes: str  # forward, forward + backward, or the same with a frozen value
    median_ms: float
    quartiles_ms: tuple[float, float]
    kept_bytes: int
    speedup: float  # over grid_sample


def make_inputs(problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    bags = (problem.batch, problem.queries, problem.heads, len(problem.shapes), problem.points)
    area = sum(height * width for height, width in problem.shapes)
    value = torch.randn(problem.batch, area, problem.heads, problem.dim, generator=generator)
    weights = torch.rand(bags, generator=generator)
    return value, torch.rand(*bags, 2, generator=generator), weights / weights.sum((3, 4), keepdim=True)


def make_runs(problem: Problem) -> dict[tuple[str, str], Callable[[], object]]:
    """Return functions to time, by (passes, implementation)."""
    value, locations, weights = make_inputs(problem)
    shapes = list(problem.shapes)
    leaves = [value.clone().requires_grad_(), locations.clone().requires_grad_(), weights.clone().requires_grad_()]
    grad = torch.randn(problem.batch, problem.queries, problem.heads * problem.dim)

    def forward(attention: Attention) -> Tensor:
        with torch.no_grad():
            return attention(value, shapes, locations, weights)

    def both(attention: Attention) -> tuple[Tensor, ...]:
        return torch.autograd.grad(attention(leaves[0], shapes, *leaves[1:]), leaves, grad)

    def frozen(attention: Attention) -> tuple[Tensor, ...]:
        return torch.autograd.grad(attention(value, shapes, *leaves[1:]), leaves[1:], grad)

    passes = {"forward": forward, "forward + backward": both, "the same, value frozen": frozen}
    return {
        (name, implementation): lambda run=run, attention=attention: run(attention)  # type: ignore[misc]
        for name, run in passes.items()
        for implementation, attention in IMPLEMENTATIONS.items()
    }


def count_kept_bytes(problem: Problem, attention: Attention) -> int:
    """Return the bytes that autograd keeps for the backward pass, each storage once, inputs included."""
    value, locations, weights = (tensor.requires_grad_() for tensor in make_inputs(problem))
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        attention(value, list(problem.shapes), locations, weights)
    return sum(kept.values())


def measure(problem: Problem, rounds: int) -> list[Timing]:
    runs = make_runs(problem)
    times: dict[tuple[str, str], list[float]] = {key: [] for key in runs}
    for round_idx in range(rounds + 2):
        for key, run in runs.items():
            start = time.process_time()
            run()
            if round_idx >= 2:  # the first rounds are warm-up
                times[key].append(1e3 * (time.process_time() - start))
    kept = {name: count_kept_bytes(problem, attention) for name, attention in IMPLEMENTATIONS.items()}
    medians = {key: statistics.median(values) for key, values in times.items()}
    timings = []
    for (passes, implementation), values in times.items():
        low, _, high = statistics.quantiles(values, n=4)
        median = medians[passes, implementation]
        speedup = medians[passes, "grid_sample"] / median
        timing = Timing(problem.name, implementation, passes, median, (low, high), kept[implementation], speedup)
        timings.append(timing)
    return timings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write all measurements to this file")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--machine", default="", help="name of the machine in the file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    columns = f"{'problem':28}{'passes':24}{'implementation':22}{'median ms':>10}"
    print(f"{columns}{'quartiles':>18}{'kept MB':>9}{'speedup':>9}")
    timings = []
    for problem in PROBLEMS:
        for timing in measure(problem, args.rounds):
            low, high = timing.quartiles_ms
            print(
                f"{timing.problem:28}{timing.passes:24}{timing.implementation:22}{timing.median_ms:10.2f}"
                f"{f'{low:.2f} .. {high:.2f}':>18}{timing.kept_bytes / 1e6:9.1f}{timing.speedup:8.1f}x",
                flush=True,
            )
            timings.append(timing)
    if args.json:
        head = {"machine": args.machine, "torch": torch.__version__, "threads": args.threads, "rounds": args.rounds}
        body = {"problems": [asdict(problem) for problem in PROBLEMS], "timings": [asdict(one) for one in timings]}
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({**head, **body}, indent=1) + "\n")


if __name__ == "__main__":
    main()
