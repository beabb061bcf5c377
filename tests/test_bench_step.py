"""Costs of whole training steps and of validation, measured and predicted, at the smallest sizes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[1] / "tools"


def run_tool(script: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, TOOLS / script, *words]
    return subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )


def bench(*words: str) -> subprocess.CompletedProcess[str]:
    return run_tool("bench_step.py", *words)


@pytest.mark.slow
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


@pytest.mark.slow
def test_estimate_memory__predicts_less_for_fewer_trained_blocks(tmp_path: Path) -> None:
    path = tmp_path / "memory.json"
    small = ["--backbone=vit_tiny_patch16_224", "--size=tiny", "--image-size=64", "--batch=1"]
    methods = ["full", "lora_everywhere", "lora_last_quarter", "lora_last_quarter_recompute"]
    run = run_tool("estimate_memory.py", *small, "--methods", *methods, "--json", str(path))
    assert run.returncode == 0, run.stderr[-3000:]
    held = [method["held_mb"] for method in json.loads(path.read_text())["methods"]]
    assert held == sorted(held, reverse=True)
    assert len(set(held)) == 4


@pytest.mark.slow
def test_bench_compile__finds_equal_gradients_without_a_graph_break(tmp_path: Path) -> None:
    path = tmp_path / "compile.json"
    sizes = ["--image-size=32", "--batch=1", "--steps=1", "--backend=eager", "--model=vit_tiny_patch16_224"]
    run = run_tool("bench_compile.py", *sizes, "--methods", "lora", "--json", str(path))
    assert run.returncode == 0, run.stderr[-3000:]
    (lora,) = json.loads(path.read_text())["methods"]
    assert (lora["blocks"], lora["graphs"], lora["graph_breaks"]) == (12, 2, 0)
    assert lora["difference"] < 1e-4
    assert lora["ratio"] > 0


@pytest.mark.slow
def test_profile_validation__gives_the_share_outside_the_model(tmp_path: Path) -> None:
    path = tmp_path / "validation.json"
    run = run_tool("profile_validation.py", "--images=2", "--json", str(path))
    assert run.returncode == 0, run.stderr[-3000:]
    found = json.loads(path.read_text())
    parts = found["seconds_per_image"]
    assert list(parts) == ["data", "model", "masks", "results", "scoring"]
    assert found["outside_the_model"] == pytest.approx(1 - parts["model"] / sum(parts.values()), abs=1e-3)
    assert found["instances_per_image"] > 0
