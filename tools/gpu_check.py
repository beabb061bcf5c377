"""The first minutes on a GPU: check and measure what only a GPU can show, the most valuable first.

    python tools/gpu_check.py                                            # at most 9 minutes on one GPU
    python tools/gpu_check.py --train train.json --val val.json --images photographs   # fine-tune on a set of yours
    python tools/gpu_check.py --device cpu --tiny                        # all sections at the smallest sizes

Every section is a process of its own with a time limit. It may fail: the next one runs all the same. Its JSON file is
written as soon as it ends, to `tools/results/gpu_check_<device>/` or to `--out`, with the command, its exit status, the
end of its output, and what it measured. Sections: native tests of the kernels; the table of the fused product; LoRA,
adapters and deformable attention against plain torch, `torch.compile`, `peft` and `grid_sample`; a Mask DINO step on a
ViT-L at 1024 px; fine-tuning of the bundled base and of a ViT-B; evaluation.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
TOOLS = ROOT / "tools"
# characters of a section's output that its JSON file holds
_TAIL = 6000


@dataclass(frozen=True)
class Section:
    """One process.

    limit: seconds
    result: JSON file that the command writes; its content is part of the section's file
    needs: packages without which it is skipped
    """

    name: str
    command: Sequence[str]
    limit: float
    result: Path | None = None
    needs: tuple[str, ...] = ()


def sections(args: argparse.Namespace, out: Path) -> list[Section]:
    """Return the sections in the order of their worth."""
    python = sys.executable
    kernels, step, evaluation = out / "kernels.json", out / "step.json", out / "evaluation_speed.json"
    bench = [python, str(TOOLS / "bench_kernels.py"), "--device", args.device, "--output", str(kernels)]
    size = ["--quick", "--rounds", "1"] if args.tiny else ["--dtypes", "bfloat16"]
    tests = ["tests/kernels/test_relu.py"] if args.tiny else ["tests/kernels"]
    found = [Section("kernel_tests", [python, "-m", "pytest", "-p", "no:cacheprovider", *tests], 150)]
    if args.device == "cuda":
        found.append(Section("kernel_table", [*bench, "--tune"], 60))
    found += [
        Section(f"kernels_{name}", [*bench, "--only", name, *size], 60, kernels)
        for name in ("lora", "adapter", "deformable")
    ]
    found.append(Section("mask_dino_step", [*_step(args), "--json", str(step)], 150, step))
    found += [
        replace(each, needs=("pycocotools", "albumentations")) for each in (*_data(args, out), *_fine_tuning(args, out))
    ]
    images = ["--images", "5", "--repeats", "1", "--resamples", "100"] if args.tiny else ["--images", "500"]
    command = [python, str(TOOLS / "bench_eval.py"), *images, "--json", str(evaluation)]
    return [*found, Section("evaluation_speed", command, 60, evaluation, ("pycocotools",))]


def _step(args: argparse.Namespace) -> list[str]:
    """Return the command that measures training steps."""
    command = [sys.executable, str(TOOLS / "bench_step.py"), "--model", "mask_dino", "--precision", "bf16"]
    if args.tiny:
        sizes = "--image-size=64 --batch=1 --steps=1 --warmup=0 --repeats=1 --methods lora_last_quarter"
        return [*command, *sizes.split()]
    sizes = "--backbone vit_large_patch16_224 --size base --image-size 1024 --batch 2 --repeats 1"
    return [*command, *sizes.split(), "--device", args.device]


def _data(args: argparse.Namespace, out: Path) -> list[Section]:
    """Return the section that draws a set where none was given."""
    if args.train is not None:
        return []
    size = ["--train", "4", "--val", "2", "--size", "64"] if args.tiny else []
    command = [sys.executable, "-m", "vispeft", "data", "shapes", "--out", str(out / "shapes"), *size]
    return [Section("data", command, 60)]


def _fine_tuning(args: argparse.Namespace, out: Path) -> list[Section]:
    """Return the sections that train and evaluate: the bundled base, and the sizes of a ViT-B with random weights."""
    shapes = out / "shapes"
    files = {
        "data.train.annotations": args.train or shapes / "train.json",
        "data.val.annotations": args.val or shapes / "val.json",
        "data.train.images": args.images or shapes / "images",
        "data.val.images": args.images or shapes / "images",
        "train.device": args.device,
        "train.steps": 2 if args.tiny else 300,
    }
    given = [f"{key}={value}" for key, value in files.items()]
    vit = ["model.weights=none", "model.backbone=vit_base_patch16_224", "model.size=base", "model.image_size=512"]
    if args.tiny:
        vit = ["model.weights=none", "model.backbone=vit_tiny_patch16_224", "model.size=tiny", "model.image_size=64"]
    found = []
    for name, recipe, words in (("bundled", "bundled_lora", []), ("vit", "vit_b_lora", vit)):
        run = out / f"run_{name}"
        command = [sys.executable, "-m", "vispeft", "train", str(ROOT / "configs" / f"{recipe}.yaml")]
        command += [*given, *words, "--out", str(run)]
        found.append(Section(f"fine_tune_{name}", command, 120, run / "summary.json"))
    return found


def environment(device: str) -> dict[str, Any]:
    """Return what the figures depend on."""
    versions = {"torch": torch.__version__, "python": platform.python_version(), "cuda": torch.version.cuda}
    if importlib.util.find_spec("triton") is not None:
        import triton

        versions["triton"] = triton.__version__
    return {"device": device_name(device), **versions, "processor": platform.processor() or platform.machine()}


def device_name(device: str) -> str:
    """Return the name of the GPU, or of no GPU."""
    return torch.cuda.get_device_name() if device == "cuda" else "cpu"


def run(section: Section, limit: float) -> dict[str, Any]:
    """Run a section for at most `limit` seconds; return what its file holds."""
    missing = [name for name in section.needs if importlib.util.find_spec(name) is None]
    if missing:
        return {"status": f"skipped: {', '.join(missing)} not installed"}
    if limit <= 0:
        return {"status": "skipped: no time left"}
    paths = [str(ROOT), str(ROOT / "kernels"), *filter(None, [os.environ.get("PYTHONPATH")])]
    start = time.monotonic()
    try:
        done = subprocess.run(
            section.command,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=limit,
            check=False,
        )
        status, output = "ok" if done.returncode == 0 else f"failed: exit status {done.returncode}", done.stdout
    except subprocess.TimeoutExpired as error:
        status, output = f"stopped after {limit:.0f} s", error.stdout or b""
    return {
        "status": status,
        "seconds": round(time.monotonic() - start, 1),
        "output": output.decode(errors="replace")[-_TAIL:],
        "result": json.loads(section.result.read_text()) if section.result and section.result.is_file() else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="the smallest sizes, to see that every section runs")
    parser.add_argument("--only", nargs="+", metavar="SECTION", help="these sections")
    parser.add_argument("--seconds", type=float, default=530, help="for all sections together")
    parser.add_argument("--out", type=Path, help="folder of the JSON files")
    parser.add_argument("--train", type=Path, help="COCO annotations to fine-tune on; a synthetic set without")
    parser.add_argument("--val", type=Path)
    parser.add_argument("--images", type=Path, help="folder of the photographs of both files")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("no GPU that torch can use; `--device cpu --tiny` runs everything at the smallest sizes")
    if len({args.train is None, args.val is None, args.images is None}) > 1:
        parser.error("`--train`, `--val` and `--images` belong together")
    name = re.sub(r"\W+", "_", device_name(args.device)).strip("_").lower()
    out = (args.out or TOOLS / "results" / f"gpu_check_{name}").resolve()
    out.mkdir(parents=True, exist_ok=True)
    (out / "environment.json").write_text(json.dumps(environment(args.device), indent=1) + "\n")
    end, failed = time.monotonic() + args.seconds, 0
    for section in sections(args, out):
        if args.only and section.name not in args.only:
            continue
        outcome = run(section, min(section.limit, end - time.monotonic()))
        written = {"section": section.name, "command": " ".join(section.command), **outcome}
        (out / f"{section.name}.json").write_text(json.dumps(written, indent=1) + "\n")
        print(f"{section.name}: {outcome['status']} ({outcome.get('seconds', 0)} s)", flush=True)
        failed += not outcome["status"].startswith(("ok", "skipped"))
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
