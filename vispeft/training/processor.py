"""Facts about the processor, read from the system. No heavy imports: the command line uses them before torch loads."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def cpu_info(field: str) -> str:
    """Return the first value of a field of /proc/cpuinfo; empty where there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() == field:
            return value.strip()
    return ""


def describe_cpu() -> str:
    """Return the number of cores and the name of the processor, for measurements."""
    return f"{os.cpu_count()} cores, {cpu_info('model name') or platform.machine()}"


def cpu_has_fast_bf16() -> bool:
    """Tell whether this CPU multiplies bf16 matrices in hardware (AMX on x86, BF16 on ARM), so that bf16 is faster."""
    return "amx_bf16" in cpu_info("flags").split() or "bf16" in cpu_info("Features").split()
