"""Choice of the implementation of each operation: `VISPEFT_KERNELS=auto|reference|triton`, read at every call."""

import importlib.metadata
import os
from collections.abc import Sequence

import torch
from torch import Tensor

from vispeft_kernels.errors import KernelError
from vispeft_kernels.launch import unsupported_reason

VARIABLE = "VISPEFT_KERNELS"
MODES = ("auto", "reference", "triton")

# implementations in mode `auto` where Triton cannot serve
AUTO = {
    "lora": "torch (keeps x and the rank-sized product only)",
    "adapter": "torch (keeps x and down(x) only)",
    "deformable_attention": "torch (weighted gather-sums) on the CPU, reference (grid_sample) elsewhere",
}


def requested() -> str:
    """Return the mode that the environment asks for; `auto` by default."""
    mode = os.environ.get(VARIABLE, "") or "auto"
    if mode not in MODES:
        raise KernelError(f"`{VARIABLE}` must be one of {', '.join(MODES)}, but is {mode!r}. Unset it for auto.")
    return mode


def choose(op: str, auto: str, tensors: Sequence[Tensor], limits: str = "") -> str:
    """Choose the implementation of `op` for tensors: the one asked for by name, or the best one if none was.

    auto: the best one in torch; on a CUDA device `triton` goes before it, where its kernels can serve
    limits: the reason that the operation's own kernels cannot serve these sizes, as a clause; empty where they can
    Raises `KernelError` where an implementation was asked for by name and cannot serve.
    """
    mode = requested()
    if mode == "reference":
        return mode
    if mode == "auto":
        is_served = tensors[0].device.type == "cuda" and not limits and not unsupported_reason(tensors)
        return "triton" if is_served else auto
    if reason := limits or unsupported_reason(tensors):
        raise KernelError(
            f"`{VARIABLE}` asks for 'triton', but its kernels cannot serve `{op}` here: {reason}. "
            f"Unset `{VARIABLE}` to use the fastest implementation that can."
        )
    return mode


def describe() -> dict[str, str]:
    """Return the mode, the version of triton and each operation's implementation here, as text for people.

    A mode that cannot be served stands in place of the implementation; nothing is raised.
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
    """Return the reason that Triton's kernels serve nothing on this machine; empty where they do."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return unsupported_reason([torch.empty(0, device=device)])
