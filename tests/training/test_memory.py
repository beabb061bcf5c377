from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from platform import libc_ver

import pytest
import torch

from vispeft.training.memory import (
    available_memory_bytes,
    keep_freed_memory,
    memory_bytes,
)

CPU = torch.device("cpu")


def test_peak_memory_bytes__counts_memory_that_was_freed_again() -> None:
    # in a process of its own, because memory that other tests freed would be reused here
    code = (
        "import torch; from vispeft.training.memory import peak_memory_bytes; cpu = torch.device('cpu');"
        "before = peak_memory_bytes(cpu); held = torch.ones(64 * 2**20); del held;"
        "print(peak_memory_bytes(cpu) - before)"
    )
    grown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(grown) >= 200 * 2**20


def may_reset() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak can be reset on Linux only")
def test_reset_peak_memory__forgets_earlier_peaks() -> None:
    # in a process of its own, because other tests change if freed memory is returned to the system
    code = (
        "import torch; from vispeft.training.memory import peak_memory_bytes, reset_peak_memory;"
        "cpu = torch.device('cpu');"
        "held = torch.ones(32 * 2**20); del held; peak = peak_memory_bytes(cpu); reset_peak_memory(cpu);"
        "print(peak_memory_bytes(cpu) - peak)"
    )
    fallen = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    if fallen == 0 and not may_reset():
        pytest.skip("this system does not let a process reset its peak")
    assert fallen < -100 * 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="the memory in use is known on Linux only")
def test_memory_bytes__grows_with_allocations() -> None:
    # in a process of its own, because memory that other tests freed would be reused here
    code = (
        "import torch; from vispeft.training.memory import memory_bytes; cpu = torch.device('cpu');"
        "before = memory_bytes(cpu); held = torch.ones(64 * 2**20); print(memory_bytes(cpu) - before)"
    )
    grown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(grown) > 200 * 2**20


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_memory_bytes__is_0_where_unknown(platform: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vispeft.training.memory._STATUS", tmp_path / "status")
    monkeypatch.setattr(sys, "platform", platform)
    assert memory_bytes(CPU) == 0
    assert not keep_freed_memory()


@pytest.mark.skipif(sys.platform != "linux" or libc_ver()[0] != "glibc", reason="needs glibc")
def test_keep_freed_memory__keeps_freed_memory_in_the_process() -> None:
    # in a process of its own, because it changes the allocator permanently
    code = (
        "import torch; from vispeft.training.memory import keep_freed_memory, memory_bytes; cpu = torch.device('cpu');"
        "did = keep_freed_memory(); held = torch.ones(32 * 2**20); full = memory_bytes(cpu); del held;"
        "print(int(did), full - memory_bytes(cpu))"
    )
    did, given_back = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert did == "1"
    assert int(given_back) < 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="the memory in use is known on Linux only")
def test_release_memory__returns_memory_that_the_allocator_kept() -> None:
    # in a process of its own, whose allocator keeps everything that is freed
    code = (
        "import torch; from vispeft.training.memory import *; cpu = torch.device('cpu'); keep_freed_memory();"
        "held = [torch.ones(2**18) for _ in range(64)]; pin = torch.ones(2**18); del held; before = memory_bytes(cpu);"
        "release_memory(); print(before - memory_bytes(cpu))"
    )
    given = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(given) >= 48 * 2**20


def test_available_memory_bytes__is_the_smaller_of_machine_and_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, count in (("memory.max", 5_000), ("memory.current", 3_000)):
        (tmp_path / name).write_text(f"{count}\n")
    monkeypatch.setattr("vispeft.training.memory._CONTAINER", tmp_path)
    known = {"MemAvailable": 9_000}
    monkeypatch.setattr("vispeft.training.memory._field_bytes", lambda _, field: known.get(field))
    assert available_memory_bytes() == 2_000
    known["MemAvailable"] = 1_500
    assert available_memory_bytes() == 1_500
    (tmp_path / "memory.max").write_text("max\n")
    assert available_memory_bytes() == 1_500
    known.clear()
    assert available_memory_bytes() is None
