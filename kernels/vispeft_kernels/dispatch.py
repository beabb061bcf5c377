"""Chooses the implementation of each operation: `VISPEFT_KERNELS=auto|reference|triton`, read at every call."""

import importlib.metadata
import os
from collections.abc import Collection

from vispeft_kernels.errors import KernelError

VARIABLE = "VISPEFT_KERNELS"
MODES = ("auto", "reference", "triton")

# what each operation takes in mode `auto`
AUTO = {
    "lora": "function (saves x and the rank-sized product only)",
    "adapter": "function (saves x and down(x) only)",
    "deformable_attention": "gather (weighted gather-sums) on the CPU, reference (grid_sample) elsewhere",
}


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
            f"`{VARIABLE}` asks for {mode!r}, but `{op}` has no {mode} implementation; by name it has "
            f"{', '.join(available)}. Unset `{VARIABLE}` to use the fastest one."
        )
    return mode


def describe() -> dict[str, str]:
    """What a call would run here, for people: the mode, the version of triton, and each operation's implementation.

    Raises nothing: a mode that cannot be served is told in place of the implementation.
    """
    mode = os.environ.get(VARIABLE, "") or "auto"
    try:
        triton = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        triton = "not installed"
    if mode == "auto":
        chosen = AUTO
    elif mode == "reference":
        chosen = dict.fromkeys(AUTO, "reference (plain torch)")
    else:
        chosen = dict.fromkeys(AUTO, f"error: no {mode} implementation")
    return {VARIABLE: mode, "triton": triton, **chosen}
