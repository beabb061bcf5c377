"""The benchmark of the kernels, at its smallest sizes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_bench_kernels__writes_results_that_agree_with_float64(tmp_path: Path) -> None:
    path = tmp_path / "kernels.json"
    run = subprocess.run(
        [sys.executable, ROOT / "tools/bench_kernels.py", "--device", "cpu", "--quick", "--output", path],
        env={**os.environ, "OMP_NUM_THREADS": "1", "VISPEFT_KERNELS": "auto"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert "\nslower than another implementation:\n" in run.stdout
    assert path.with_suffix(".png").stat().st_size > 1000
    measurements = json.loads(path.read_text())["measurements"]
    ours = [one for one in measurements if one["is_ours"]]
    assert {one["kernel"] for one in ours} == {"lora", "adapter", "deformable"}
    assert not [one["failure"] for one in ours if one["failure"]]
    assert {one["kernel"] for one in ours if one["error"] is not None} == {"lora", "adapter", "deformable"}
    assert all(one["error"] < 1e-5 for one in measurements if one["error"] is not None)
    assert all(one["median_ms"] > 0 for one in measurements if not one["failure"])
