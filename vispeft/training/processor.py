"""Facts about the processor, read from the system. No heavy imports: the command line uses it before torch loads."""

from __future__ import annotations

from pathlib import Path


def cpu_info(field: str) -> str:
    """Return the first value of a field of /proc/cpuinfo, or nothing where there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() == field:
            return value.strip()
    return ""
