from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vispeft.training.memory import (
    available_memory_bytes,
    keep_freed_memory,
    memory_bytes,
    peak_memory_bytes,
    reset_peak_memory,
)

CPU = torch.device("cpu")


def test_peak_memory_bytes__sees_what_was_held_and_freed() -> None:
    # in a process of its own: what other tests freed would be used again here
    code = (
        "import torch; from vispeft.training.memory import peak_memory_bytes; cpu = torch.device('cpu');"
        "before = peak_memory_bytes(cpu); held = torch.ones(64 * 2**20); del held;"
        "print(peak_memory_bytes(cpu) - before)"
    )
    grown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(grown) >= 200 * 2**20


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak can be reset on Linux only")
def test_reset_peak_memory__begins_anew() -> None:
    held = torch.ones(32 * 2**20)
    del held
    peak = peak_memory_bytes(CPU)
    reset_peak_memory(CPU)
    if peak_memory_bytes(CPU) == peak:
        pytest.skip("this system does not let a process reset its peak")
    assert peak_memory_bytes(CPU) < peak


def test_memory_bytes__is_known_on_linux() -> None:
    assert memory_bytes(CPU) > 2**20 or sys.platform != "linux"


def test_keep_freed_memory__says_whether_it_did() -> None:
    assert keep_freed_memory() in (True, False)
    assert torch.ones(1000).sum() == 1000


@pytest.mark.skipif(sys.platform != "linux", reason="the memory in use is known on Linux only")
def test_release_memory__gives_back_what_an_allocator_kept() -> None:
    # in a process of its own, whose allocator keeps everything that is freed
    code = (
        "import torch; from vispeft.training.memory import *; cpu = torch.device('cpu'); keep_freed_memory();"
        "held = [torch.ones(2**18) for _ in range(64)]; pin = torch.ones(2**18); del held; before = memory_bytes(cpu);"
        "release_memory(); print(before - memory_bytes(cpu))"
    )
    given = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(given) >= 48 * 2**20


def test_available_memory_bytes__shrinks_by_what_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, count in (("memory.max", 5_000), ("memory.current", 3_000)):
        (tmp_path / name).write_text(f"{count}\n")
    monkeypatch.setattr("vispeft.training.memory._CONTAINER", tmp_path)
    assert available_memory_bytes() == 2_000
    (tmp_path / "memory.max").write_text("max\n")
    assert (available_memory_bytes() or 2**40) > 2**20
