"""Peak memory of this process or its GPU, and control of the allocator: keep freed memory, release it between runs."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_CONTAINER = Path("/sys/fs/cgroup")
# from glibc's malloc.h
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4


def keep_freed_memory() -> bool:
    """Ask glibc not to return freed memory to the kernel between steps. Return True on success.

    Otherwise each page of a step's activations costs a page fault: a fifth to a quarter of the processor time of a
    forward pass through frozen blocks. No effect elsewhere than on Linux with glibc.
    """
    if sys.platform != "linux":
        return False
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:
        return False
    # no mapping of its own for a large block, and no trimming of the heap's end
    return bool(libc.mallopt(_M_MMAP_MAX, 0)) and bool(libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))


def release_memory() -> None:
    """Release the memory of a finished run, so that it does not count in the next run's peak."""
    gc.collect()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)


def reset_peak_memory(device: torch.device) -> None:
    """Reset the peak memory of `device`. The peak of a process can be reset on Linux only."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        _CLEAR_REFS.write_text("5")
    except OSError:
        # no /proc, or not writable: the peak then counts from the start of the process
        return


def peak_memory_bytes(device: torch.device) -> int:
    """Return the peak memory since the last reset: of tensors on a GPU, of the process elsewhere. 0 if unknown."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    from_status = _status_bytes("VmHWM")
    return _rusage_peak_bytes() if from_status is None else from_status


def memory_bytes(device: torch.device) -> int:
    """Return the memory held now, in bytes, for a progress bar. 0 if unknown."""
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    return _status_bytes("VmRSS") or 0


def available_memory_bytes() -> int | None:
    """Return the bytes that this process may still allocate in its machine and container. None if unknown."""
    found = [_field_bytes(Path("/proc/meminfo"), "MemAvailable"), _container_bytes()]
    known = [count for count in found if count is not None]
    return min(known) if known else None


def _container_bytes() -> int | None:
    try:
        limit, held = (int((_CONTAINER / name).read_text()) for name in ("memory.max", "memory.current"))
    # no container, or `max`: no limit
    except (OSError, ValueError):
        return None
    return max(limit - held, 0)


def _status_bytes(field: str) -> int | None:
    return _field_bytes(_STATUS, field)


def _field_bytes(path: Path, field: str) -> int | None:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return None


def _rusage_peak_bytes() -> int:
    if sys.platform == "win32":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # macOS counts bytes, the others kilobytes
    return peak if sys.platform == "darwin" else peak * 1024
