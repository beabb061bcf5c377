"""Chooses the implementation of each operation: `VISPEFT_KERNELS=auto|reference|triton`, read at every call."""

import os
from collections.abc import Collection

from vispeft_kernels.errors import KernelError

VARIABLE = "VISPEFT_KERNELS"
MODES = ("auto", "reference", "triton")


def requested() -> str:
    """The mode that the environment asks for: `auto` where it says nothing."""
    mode = os.environ.get(VARIABLE, "") or "auto"
    if mode not in MODES:
        raise KernelError(f"`{VARIABLE}` must be one of {', '.join(MODES)}, but is {mode!r}. Unset it for auto.")
    return mode


def choose(op: str, auto: str, available: Collection[str]) -> str:
    """The implementation of `op` to run: the one asked for by name, or `auto`, the best one, if none was."""
    mode = requested()
    if mode == "auto":
        return auto
    if mode not in available:
        raise KernelError(
            f"`{VARIABLE}` is {mode!r}, but `{op}` has no {mode} implementation here; it has {', '.join(available)}. "
            f"Unset `{VARIABLE}` to use the fastest one."
        )
    return mode
