"""Device, precision and processes of a run, through Lightning Fabric.

A device that is requested by name but not available is an error. Errors name the arguments of these functions; `prefix`
turns such a name into the one that a user wrote: `train.` for configuration keys, `--` for options.
"""

from __future__ import annotations

import atexit
import os
import platform
import sys
from typing import Literal

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.precision import MixedPrecision

from vispeft.errors import TrainingError
from vispeft.training.distributed import GradientExchange
from vispeft.training.processor import cpu_info

Precision = Literal["auto", "fp32", "bf16", "fp16"]
_FABRIC_PRECISION: dict[str, Literal["32-true", "bf16-mixed", "16-mixed"]] = {
    "fp32": "32-true",
    "bf16": "bf16-mixed",
    "fp16": "16-mixed",
}


def build_fabric(device: str = "auto", precision: Precision = "auto", devices: int = 1, *, prefix: str = "") -> Fabric:
    """Return a launched Fabric on `device`.

    device: "auto" (a GPU where there is one, else the CPU), "cpu", "cuda", "mps", or one GPU as "cuda:1"
    precision: "auto" is bf16 on a GPU that has it and fp32 elsewhere; bf16 and fp16 are mixed precision
    devices: processes on this machine, one device each; under `torchrun`, its own numbers count
    prefix: of argument names in errors, see above
    """
    kind, index = parse_device(device, prefix=prefix)
    num_local, num_nodes = _processes(devices, prefix)
    _check_number(device, kind, index, num_local, prefix)
    chosen = choose_precision(kind, precision, prefix=prefix)
    fabric = Fabric(
        accelerator=kind,
        devices=num_local if index is None else [index],
        num_nodes=num_nodes,
        strategy=GradientExchange() if num_local * num_nodes > 1 else "auto",
        precision=_FABRIC_PRECISION[chosen],
    )
    fabric.launch()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        atexit.register(_leave_process_group)
    return fabric


def _check_number(device: str, kind: str, index: int | None, num_processes: int, prefix: str) -> None:
    """Raise TrainingError where this machine has fewer devices than processes, or one device must serve several."""
    if index is not None and num_processes > 1:
        raise TrainingError(
            f"`{prefix}device={device}` names one device, but {num_processes} processes were requested. "
            f"Use `{prefix}device={kind}`."
        )
    if kind == "cuda" and max(num_processes, (index or 0) + 1) > torch.cuda.device_count():
        raise TrainingError(
            f"`{prefix}device={device}` with {num_processes} {'processes' if num_processes > 1 else 'process'} needs "
            f"more GPUs than this machine has: {torch.cuda.device_count()}."
        )


def is_first_process() -> bool:
    """Return True in the process of rank 0, and where there is only one process."""
    return (
        not (torch.distributed.is_available() and torch.distributed.is_initialized())
        or not torch.distributed.get_rank()
    )


def _leave_process_group() -> None:
    """Join the threads of the process group: gloo's abort a process that ends while one of them still runs."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def parse_device(device: str, *, prefix: str = "") -> tuple[Literal["cpu", "cuda", "mps"], int | None]:
    """Return kind and index of a device after a check that it is available. prefix: see `build_fabric`."""
    key = f"{prefix}device"
    name, _, digits = device.partition(":")
    if digits and (name != "cuda" or not digits.isdecimal()):
        raise TrainingError(f"`{key}` must be like `cuda:1` if it has a number, but is {device!r}.")
    index = int(digits) if digits else None
    match name:
        case "auto":
            return ("cuda" if torch.cuda.is_available() else "cpu"), None
        case "cpu":
            return "cpu", None
        case "cuda":
            if not torch.cuda.is_available():
                raise _not_available(key, name, "no usable CUDA GPU (see `nvidia-smi` and the installed torch)")
            return "cuda", index
        case "mps":
            if not torch.backends.mps.is_available():
                raise _not_available(key, name, "no Apple GPU")
            return "mps", None
    raise TrainingError(f"`{key}` must be `auto`, `cpu`, `cuda`, `mps` or like `cuda:1`, but is {device!r}.")


def _not_available(key: str, name: str, reason: str) -> TrainingError:
    return TrainingError(
        f"`{key}={name}` was requested, but this machine has {reason}. Use `{key}=auto` or `{key}=cpu`."
    )


def trains_on_cpu(device: str) -> bool:
    """Tell whether `device` means the CPU on this machine, without a check that the device is available."""
    return device == "cpu" or (device == "auto" and not torch.cuda.is_available())


def leave_cores_to_workers(num_workers: int) -> None:
    """Limit torch's threads to the cores that loader processes leave free: a thread on a shared core delays all."""
    torch.set_num_threads(max(1, min(torch.get_num_threads(), _usable_cores() - num_workers)))


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def choose_precision(kind: str, precision: Precision, *, prefix: str = "") -> Literal["fp32", "bf16", "fp16"]:
    """Return the precision that `precision` means on a device of this kind. prefix: see `build_fabric`."""
    if precision == "auto":
        return "bf16" if kind == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if precision not in _FABRIC_PRECISION:
        raise TrainingError(f"`{prefix}precision` must be `auto`, `fp32`, `bf16` or `fp16`, but is {precision!r}.")
    if precision == "fp16" and kind != "cuda":
        raise TrainingError(f"`{prefix}precision=fp16` needs a CUDA GPU, but the device is `{kind}`. Use fp32 or bf16.")
    return precision


def uses_loss_scaling(fabric: Fabric) -> bool:
    """Tell whether steps with non-finite gradients are skipped and the loss scale lowered (fp16)."""
    plugin = fabric.strategy.precision
    return isinstance(plugin, MixedPrecision) and plugin.scaler is not None


def describe_device(fabric: Fabric) -> str:
    """Return the name of the GPU, or of the CPU with its number of threads."""
    if fabric.device.type == "cuda":
        return torch.cuda.get_device_name(fabric.device)
    if fabric.device.type == "mps":
        return "Apple GPU"
    name = cpu_info("model name") or platform.processor() or platform.machine()
    threads = torch.get_num_threads()
    return f"{name}, {threads} thread{'' if threads == 1 else 's'}"


def count_processes(devices: int, *, prefix: str = "") -> int:
    """Return the number of processes that `build_fabric` starts, on all machines together."""
    num_local, num_nodes = _processes(devices, prefix)
    return num_local * num_nodes


def _processes(devices: int, prefix: str) -> tuple[int, int]:
    """Return the processes per machine and the machines. Under `torchrun` its environment variables give them."""
    if devices < 1:
        raise TrainingError(f"`{prefix}devices` must be at least 1, but is {devices}.")
    if "LOCAL_WORLD_SIZE" not in os.environ or "WORLD_SIZE" not in os.environ:
        return devices, 1
    local = int(os.environ["LOCAL_WORLD_SIZE"])
    return local, int(os.environ["WORLD_SIZE"]) // local
