"""Choice of device, precision and processes of a run, by way of Lightning Fabric.

A device that is asked for by name but not available is an error.
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
from lightning_fabric.strategies.ddp import DDPStrategy

from vispeft.errors import TrainingError
from vispeft.training.processor import cpu_info

Precision = Literal["auto", "fp32", "bf16", "fp16"]
_FABRIC_PRECISION: dict[str, Literal["32-true", "bf16-mixed", "16-mixed"]] = {
    "fp32": "32-true",
    "bf16": "bf16-mixed",
    "fp16": "16-mixed",
}


def build_fabric(
    device: str = "auto", precision: Precision = "auto", num_devices: int = 1, *, key: str = "train.device"
) -> Fabric:
    """Return a launched Fabric on `device`.

    device: "auto" (a GPU where there is one, else the CPU), "cpu", "cuda", "mps", or one GPU as "cuda:1"
    precision: "auto" is bf16 on a GPU that has it and fp32 elsewhere; bf16 and fp16 are mixed precision
    num_devices: processes on this machine, one device each; under `torchrun`, its own numbers count
    key: configuration key or option that names the device, for errors
    """
    kind, index = parse_device(device, key=key)
    num_devices, num_nodes = _processes(num_devices)
    if index is not None and num_devices > 1:
        raise TrainingError(
            f"`{key}={device}` names one device, but {num_devices} processes were asked for. Use `{key}={kind}`."
        )
    if kind == "cuda" and max(num_devices, (index or 0) + 1) > torch.cuda.device_count():
        raise TrainingError(
            f"`{key}={device}` with {num_devices} {'processes' if num_devices > 1 else 'process'} needs more GPUs than "
            f"are here: {torch.cuda.device_count()}."
        )
    chosen = choose_precision(kind, precision)
    fabric = Fabric(
        accelerator=kind,
        devices=num_devices if index is None else [index],
        num_nodes=num_nodes,
        # a batch without objects leaves the denoising embedding out
        strategy=DDPStrategy(find_unused_parameters=True) if num_devices * num_nodes > 1 else "auto",
        precision=_FABRIC_PRECISION[chosen],
    )
    fabric.launch()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        atexit.register(_leave_process_group)
    return fabric


def _leave_process_group() -> None:
    """Join the threads of the process group: gloo's abort a process that ends while one of them still runs."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def parse_device(device: str, *, key: str = "train.device") -> tuple[Literal["cpu", "cuda", "mps"], int | None]:
    """Return kind and index of a device after checking that it is available. key: its key or option, for errors."""
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
            _require(
                torch.cuda.is_available(),
                f"{key}=cuda",
                "no usable CUDA GPU (see `nvidia-smi` and the installed torch)",
            )
            return "cuda", index
        case "mps":
            _require(torch.backends.mps.is_available(), f"{key}=mps", "no Apple GPU")
            return "mps", None
    raise TrainingError(f"`{key}` must be `auto`, `cpu`, `cuda`, `mps` or like `cuda:1`, but is {device!r}.")


def trains_on_cpu(device: str) -> bool:
    """Tell whether `train.device` means the CPU here, without a check that the device is available."""
    return device == "cpu" or (device == "auto" and not torch.cuda.is_available())


def leave_cores_to_workers(num_workers: int) -> None:
    """Limit torch's threads to the cores that loader processes leave: one that shares its core delays all others."""
    torch.set_num_threads(max(1, min(torch.get_num_threads(), _usable_cores() - num_workers)))


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def choose_precision(kind: str, precision: Precision) -> Literal["fp32", "bf16", "fp16"]:
    """Return the precision that `precision` means on a device of this kind."""
    if precision == "auto":
        return "bf16" if kind == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if precision not in _FABRIC_PRECISION:
        raise TrainingError(f"`train.precision` must be `auto`, `fp32`, `bf16` or `fp16`, but is {precision!r}.")
    if precision == "fp16" and kind != "cuda":
        raise TrainingError(f"`train.precision=fp16` needs a CUDA GPU, but the device is `{kind}`. Use fp32 or bf16.")
    return precision


def uses_loss_scaling(fabric: Fabric) -> bool:
    """Tell whether steps with non-finite gradients are skipped and the loss scale lowered (fp16)."""
    plugin = fabric.strategy.precision
    return isinstance(plugin, MixedPrecision) and plugin.scaler is not None


def describe_device(fabric: Fabric) -> str:
    """Return the device in words: the name of the GPU, or of the CPU with its number of threads."""
    if fabric.device.type == "cuda":
        return torch.cuda.get_device_name(fabric.device)
    if fabric.device.type == "mps":
        return "Apple GPU"
    name = cpu_info("model name") or platform.processor() or platform.machine()
    return f"{name}, {torch.get_num_threads()} threads"


def cpu_has_fast_bf16() -> bool:
    """Tell whether this CPU multiplies bf16 matrices in hardware (AMX on x86, BF16 on ARM), so that bf16 is faster."""
    return "amx_bf16" in cpu_info("flags").split() or "bf16" in cpu_info("Features").split()


def _require(is_there: bool, asked: str, what: str) -> None:
    if not is_there:
        key = asked.partition("=")[0]
        raise TrainingError(f"`{asked}` was asked for, but this machine has {what}. Use `{key}=auto` or `{key}=cpu`.")


def count_processes(num_devices: int) -> int:
    """Return the number of processes of a run with `train.devices`, on all machines together."""
    local, num_nodes = _processes(num_devices)
    return local * num_nodes


def _processes(num_devices: int) -> tuple[int, int]:
    """Return the processes per machine and the machines. Under `torchrun` its environment variables give them."""
    if num_devices < 1:
        raise TrainingError(f"`train.devices` must be at least 1, but is {num_devices}.")
    if "LOCAL_WORLD_SIZE" not in os.environ or "WORLD_SIZE" not in os.environ:
        return num_devices, 1
    local = int(os.environ["LOCAL_WORLD_SIZE"])
    return local, int(os.environ["WORLD_SIZE"]) // local
