"""What whole training steps cost, measured and predicted, at the smallest sizes."""

import json
import os
import subprocess
import sys
from pathlib import Path

TOOLS = Path(__file__).parents[1] / "tools"


def run_tool(script: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, TOOLS / script, *words]
    return subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )


def bench(*words: str) -> subprocess.CompletedProcess[str]:
    return run_tool("bench_step.py", *words)


def test_bench_step__measures_mask_dino_in_mixed_precision(tmp_path: Path) -> None:
    path = tmp_path / "step.json"
    sizes = ["--image-size=64", "--batch=1", "--steps=1", "--warmup=0", "--repeats=1"]
    run = bench(
        "--model=mask_dino",
        "--precision=bf16",
        *sizes,
        "--methods",
        "lora_last_quarter",
        "lora_last_quarter_recompute",
        "--json",
        str(path),
    )
    assert run.returncode == 0, run.stderr[-3000:]
    rounds = json.loads(path.read_text())["rounds"]
    kept, recomputed = rounds["lora_last_quarter"][0], rounds["lora_last_quarter_recompute"][0]
    assert 0 < kept["trainable"] == recomputed["trainable"]
    assert 0 < recomputed["kept_mb"] < kept["kept_mb"]
    assert recomputed["step_s"] > 0
    assert "lora_last_quarter_recompute" in run.stdout


def test_bench_step__names_the_methods_that_it_knows() -> None:
    run = bench("--methods", "lorra")
    assert run.returncode == 1
    assert run.stderr.startswith("`--methods` must be some of forward, floor, head")


def test_estimate_memory__predicts_less_for_fewer_trained_blocks(tmp_path: Path) -> None:
    path = tmp_path / "memory.json"
    small = ["--backbone=vit_tiny_patch16_224", "--size=tiny", "--image-size=64", "--batch=1"]
    methods = ["full", "lora_everywhere", "lora_last_quarter", "lora_last_quarter_recompute"]
    run = run_tool("estimate_memory.py", *small, "--methods", *methods, "--json", str(path))
    assert run.returncode == 0, run.stderr[-3000:]
    held = [method["held_mb"] for method in json.loads(path.read_text())["methods"]]
    assert held == sorted(held, reverse=True)
    assert len(set(held)) == 4
