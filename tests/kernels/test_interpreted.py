"""The tests of Triton's kernels, in its interpreter, where there is no GPU to run them on."""

import importlib.util
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent


def needs_older_numpy() -> bool:
    """Return true if Triton's interpreter turns arrays of one element into numbers, which NumPy 2.4 refuses."""
    if importlib.util.find_spec("triton") is None:
        return False
    triton, numpy = (tuple(map(int, version(name).split(".")[:2])) for name in ("triton", "numpy"))
    return triton < (3, 7) and numpy >= (2, 4)


@pytest.mark.skipif(torch.cuda.is_available(), reason="they run natively here")
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.skipif("needs_older_numpy()", reason="the interpreter of Triton before 3.7 needs NumPy before 2.4")
@pytest.mark.parametrize(
    "name", ["adapter", *(pytest.param(name, marks=pytest.mark.slow) for name in ("lora", "deformable", "sites"))]
)
def test_kernels__pass_their_tests_in_the_interpreter(name: str) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-x", HERE / f"test_triton_{name}.py"],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        cwd=HERE.parents[1],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    assert " passed" in run.stdout
