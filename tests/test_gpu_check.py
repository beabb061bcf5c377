"""The check for a GPU, without one and at the smallest sizes: every section must run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[1] / "tools" / "gpu_check.py"


def gpu_check(*words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run([sys.executable, TOOL, *words], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_gpu_check__runs_every_section(tmp_path: Path) -> None:
    run = gpu_check("--device", "cpu", "--tiny", "--out", str(tmp_path))
    assert run.returncode == 0, run.stdout
    files = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    assert {name for name, content in files.items() if content.get("status") == "ok"} == {
        "kernel_tests",
        "kernels_lora",
        "kernels_adapter",
        "kernels_deformable",
        "mask_dino_step",
        "data",
        "fine_tune_bundled",
        "fine_tune_vit",
        "evaluation_speed",
    }
    assert files["fine_tune_bundled"]["result"]["steps"] == 2
    assert files["environment"]["device"] == "cpu"


@pytest.mark.slow
def test_gpu_check__goes_on_after_a_failure_and_without_time(tmp_path: Path) -> None:
    run = gpu_check("--device", "cpu", "--tiny", "--out", str(tmp_path), "--only", "kernel_tests", "--seconds", "0.5")
    assert run.returncode == 1
    assert json.loads((tmp_path / "kernel_tests.json").read_text())["status"].startswith("stopped after")
    run = gpu_check("--device", "cpu", "--tiny", "--out", str(tmp_path), "--only", "data", "--seconds", "-1")
    assert json.loads((tmp_path / "data.json").read_text())["status"] == "skipped: no time left"


@pytest.mark.parametrize(
    ("words", "message"),
    [((), "no GPU that torch can use"), (("--device", "cpu", "--train", "train.json"), "belong together")],
)
def test_gpu_check__refuses(words: tuple[str, ...], message: str) -> None:
    run = gpu_check(*words)
    assert run.returncode == 2
    assert message in run.stderr
