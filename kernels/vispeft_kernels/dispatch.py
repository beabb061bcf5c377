"""Choice of the implementation of each operation: `VISPEFT_KERNELS=auto|reference|triton`, read at every call."""

import importlib.metadata
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

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


@contextmanager
def requesting(mode: str) -> Iterator[None]:
    """Context in which the environment asks for `mode`, whatever it asked for before."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = mode
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before


def choose(op: str, auto: str, tensors: Sequence[Tensor], limits: str = "") -> str:
    """Choose the implementation of `op` for tensors: the requested one, or the fastest one in mode `auto`.

    auto: the fastest implementation in torch; on a CUDA device `triton` is preferred where its kernels can serve
    limits: the reason that the operation's own kernels cannot serve these sizes, as a clause; empty where they can
    Raises `KernelError` if a requested implementation cannot serve.
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
    """Return the mode, the version of triton and each operation's implementation on this machine, as readable text.

    For a mode that cannot be served, the text is an error message; nothing is raised.
    """
    mode = os.environ.get(VARIABLE, "") or "auto"
    try:
        triton = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        triton = "not installed"
    reason = _unsupported_here()
    if mode == "auto":
        chosen = {op: text if reason else f"triton on the GPU; elsewhere {text}" for op, text in AUTO.items()}
    elif mode == "reference":
        chosen = dict.fromkeys(AUTO, "reference (plain torch)")
    elif mode == "triton":
        chosen = dict.fromkeys(AUTO, f"error: {reason}" if reason else "triton")
    else:
        chosen = dict.fromkeys(AUTO, f"error: no mode {mode}")
    return {VARIABLE: mode, "triton": f"{triton}; not used: {reason}" if reason else triton, **chosen}


def _unsupported_here() -> str:
    """Return the reason that Triton's kernels cannot run on this machine; empty if they can."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return unsupported_reason([torch.empty(0, device=device)])
