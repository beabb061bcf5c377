"""Compare every kernel of this project with plain torch, `torch.compile`, public libraries and a lower bound.

    python tools/bench_kernels.py                         # on a GPU: all kernels at realistic sizes, bfloat16
    python tools/bench_kernels.py --device cpu --quick    # small sizes, to check that everything runs
    python tools/bench_kernels.py --device cpu            # on a CPU: one image, float32, one thread
    python tools/bench_kernels.py --only lora --dtypes bfloat16 float16 float32 --skip compile peft
    python tools/bench_kernels.py --tune                  # find where the fused product is faster, write its table

Writes `tools/results/kernels_<device>.json` and a plot beside it, and prints a table and the cases in which another
implementation is faster. With `--only`, the measurements of other kernels stay in the file, so that a run can be split.

Outputs and gradients of every implementation are first compared with float64. `compile` is `torch.compile` of the plain
formula; `peft` and `deformops` are measured if they are installed. A ratio is to the baseline: for LoRA the frozen
linear layers alone, with the gradient of their inputs; for adapters the plain formula; for deformable attention
`grid_sample`. Peak memory is the memory of one call beyond its inputs, kept memory is what the forward pass saves for
the backward pass. The gradient of a sampling location is discontinuous at pixel borders: among millions of samples, one
that is rounded to the other side gives a large error, in every implementation of deformable attention.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import bench_kernels_adapter
import bench_kernels_deformable
import bench_kernels_lora
import torch
from bench_kernels_measure import Ceilings, Measurement, Settings, measure_case, measure_ceilings
from bench_kernels_report import plot, slower_cases, table
from bench_kernels_tune import tune

KERNELS = {
    "lora": bench_kernels_lora.cases,
    "adapter": bench_kernels_adapter.cases,
    "deformable": bench_kernels_deformable.cases,
}
LIBRARIES = ("torch", "triton", "peft", "deformops")
RESULTS = Path(__file__).parent / "results"


def measure(kernels: list[str], settings: list[Settings], scale: str) -> tuple[list[Measurement], dict[str, Ceilings]]:
    """Return all measurements, and the ceilings by dtype."""
    measurements: list[Measurement] = []
    ceilings: dict[str, Ceilings] = {}
    for one in settings:
        found = ceilings[str(one.dtype).removeprefix("torch.")] = measure_ceilings(one)
        for kernel in kernels:
            for case in KERNELS[kernel](scale):
                print(f"{case.kernel}: {case.name}", file=sys.stderr, flush=True)
                measurements += measure_case(case, one, found)
                torch.compiler.reset()
                if one.device.type == "cuda":
                    torch.cuda.empty_cache()
    return measurements, ceilings


def versions() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return {"python": platform.python_version(), **found}


def read_measurements(path: Path) -> list[Measurement]:
    """Read the results of an earlier run from the file, if there is one."""
    if not path.exists():
        return []
    return [Measurement(**one) for one in json.loads(path.read_text())["measurements"]]


def device_name(device: torch.device) -> str:
    """Return the name of the device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", nargs="+", choices=sorted(KERNELS), default=list(KERNELS), help="these kernels")
    parser.add_argument("--dtypes", nargs="+", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--skip", nargs="+", default=[], help="implementations: compile, peft, deformops, compiled")
    parser.add_argument("--quick", action="store_true", help="small sizes, few rounds, nothing compiled")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--no-graphs", action="store_true", help="no CUDA graphs")
    parser.add_argument("--tune", action="store_true", help="write the table of the fused product and stop")
    parser.add_argument("--output", type=Path, help="JSON file; the plot gets the same name")
    return parser.parse_args()


def main() -> None:
    """Measure, write and show the results."""
    args = parse_arguments()
    device = torch.device(args.device)
    if device.type == "cpu":
        torch.set_num_threads(1)
    if args.tune:
        tune(device)
        return
    dtypes = args.dtypes or (["bfloat16"] if device.type == "cuda" else ["float32"])
    skip = frozenset([*args.skip, *(("compile", "compiled") if args.quick else ())])
    rounds = 3 if args.quick else args.rounds
    settings = [
        Settings(device, getattr(torch, dtype), rounds, 1 if args.quick else 10, not args.no_graphs, skip)
        for dtype in dtypes
    ]
    measurements, ceilings = measure(
        args.only, settings, "quick" if args.quick else "gpu" if device.type == "cuda" else "cpu"
    )
    name = device_name(device)
    path = args.output or RESULTS / f"kernels_{name.lower().replace(' ', '_')}.json"
    earlier = [one for one in read_measurements(path) if one.kernel not in args.only]
    report = {
        "command": " ".join(["python", "tools/bench_kernels.py", *sys.argv[1:]]),
        "device": name,
        "versions": versions(),
        "rounds": rounds,
        "ceilings": {dtype: asdict(one) for dtype, one in ceilings.items()},
        "measurements": [asdict(one) for one in earlier + measurements],
    }
    path.write_text(json.dumps(report, indent=1) + "\n")
    plot(earlier + measurements, path.with_suffix(".png"), f"{name}, torch {torch.__version__}")
    print(table(measurements, ceilings))
    print(f"\n{slower_cases(measurements)}\n\n{path}")


if __name__ == "__main__":
    main()
