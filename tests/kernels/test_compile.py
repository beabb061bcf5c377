"""Triton's kernels compiled ahead of time for GPUs that need not be there, each set in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed")
import triton

ROOT = Path(__file__).parents[2]
TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
# step through the configurations: one or two of each kernel, since all are slow
FEW = {"lora": 29, "adapter": 7, "deformable": 11}
QUICK = ("adapter", 90)


def compile_kernels(*args: str) -> None:
    missing = [name for name in ("ptxas", "cuobjdump", "nvdisasm") if not (TOOLS / name).exists()]
    if missing:
        pytest.skip(f"this wheel of triton lacks {', '.join(missing)}")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, ROOT / "tools/compile_kernels.py", *args],
        env={**environment, "TRITON_DEFAULT_FP_FUSION": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    assert " ok " in run.stdout


@pytest.mark.parametrize(
    ("name", "arch"),
    [
        pytest.param(name, arch, marks=() if (name, arch) == QUICK else pytest.mark.slow)
        for name in FEW
        for arch in (80, 90)
    ],
)
def test_kernels__compile_without_spills_and_with_tensor_cores(name: str, arch: int) -> None:
    compile_kernels("--only", name, "--arch", str(arch), "--every", str(FEW[name]))


@pytest.mark.slow
@pytest.mark.skipif("VISPEFT_SLOW" not in os.environ, reason="minutes of compiling: set VISPEFT_SLOW=1")
@pytest.mark.parametrize("name", FEW)
def test_kernels__compile_in_every_configuration(name: str) -> None:
    compile_kernels("--only", name)
