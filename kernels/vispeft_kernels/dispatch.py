"""Chooses the implementation of each operation: `VISPEFT_KERNELS=auto|reference|triton`, read at every call."""

import importlib.metadata
import os
from collections.abc import Sequence

import torch
from torch import Tensor

from vispeft_kernels.errors import KernelError
from vispeft_kernels.launch import obstacle

VARIABLE = "VISPEFT_KERNELS"
MODES = ("auto", "reference", "triton")

# what each operation takes in mode `auto` where Triton cannot serve
AUTO = {
    "lora": "torch (keeps x and the rank-sized product only)",
    "adapter": "torch (keeps x and down(x) only)",
    "deformable_attention": "torch (weighted gather-sums) on the CPU, reference (grid_sample) elsewhere",
}


def requested() -> str:
    """The mode that the environment asks for: `auto` where it says nothing."""
    mode = os.environ.get(VARIABLE, "") or "auto"
    if mode not in MODES:
        raise KernelError(f"`{VARIABLE}` must be one of {', '.join(MODES)}, but is {mode!r}. Unset it for auto.")
    return mode


def choose(op: str, auto: str, tensors: Sequence[Tensor], limits: str = "") -> str:
    """The implementation of `op` to run on tensors: the one asked for by name, or the best one if none was.

    auto: the best one in torch; on a CUDA device `triton` goes before it, where its kernels can serve
    limits: why the operation's own kernels cannot serve these sizes, as a clause; empty where they can
    """
    mode = requested()
    if mode == "reference":
        return mode
    if mode == "auto":
        is_served = tensors[0].device.type == "cuda" and not limits and not obstacle(tensors)
        return "triton" if is_served else auto
    if reason := limits or obstacle(tensors):
        raise KernelError(
            f"`{VARIABLE}` asks for 'triton', but its kernels cannot serve `{op}` here: {reason}. "
            f"Unset `{VARIABLE}` to use the fastest implementation that can."
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
    reason = _why_no_triton()
    if mode == "auto":
        chosen = {op: told if reason else f"triton on the GPU; elsewhere {told}" for op, told in AUTO.items()}
    elif mode == "reference":
        chosen = dict.fromkeys(AUTO, "reference (plain torch)")
    elif mode == "triton":
        chosen = dict.fromkeys(AUTO, f"error: {reason}" if reason else "triton")
    else:
        chosen = dict.fromkeys(AUTO, f"error: no mode {mode}")
    return {VARIABLE: mode, "triton": f"{triton}; not used: {reason}" if reason else triton, **chosen}


def _why_no_triton() -> str:
    """Why Triton's kernels serve nothing on this machine; empty where they do."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return obstacle([torch.empty(0, device=device)])
