"""Commands that list methods, configuration keys and the machine's capabilities: methods, schema, doctor."""

from __future__ import annotations

from importlib import metadata, resources
from pathlib import Path
from typing import Any

from vispeft.cli.terminal import console, show_table


def methods() -> None:
    """Show the available methods, models and devices.

    Example: vispeft methods
    """
    found = _listing()
    show_table(
        "Methods (peft.deltas: {pattern: {method: ..., ...}})",
        ("method", "fields", "start", "summary"),
        found["methods"],
    )
    plans = [
        ("head only", "peft.train: ['@heads']"),
        ("last k blocks", "peft.train: ['@heads', '@encoder.blocks[-2:]']"),
        ("biases", "peft.train: ['@heads', '**.bias']"),
        ("norms", "peft.train: ['@heads', '@norms']"),
        ("full", "peft.train: ['**']"),
    ]
    show_table("Parameters trained in full, without deltas", ("plan", "configuration"), plans)
    show_table("Models (model.name, model.size)", ("model", "sizes"), found["families"])


def schema() -> None:
    """Print the JSON schema of a configuration file, for completion and help in editors.

    Example: vispeft schema > vispeft.schema.json
    """
    import json

    print(json.dumps(_listing()["schema"], indent=1))


def doctor() -> None:
    """Show versions, devices, precisions and kernels of this machine.

    Example: vispeft doctor
    """
    import torch
    from vispeft_kernels.dispatch import describe

    from vispeft.training.devices import choose_precision
    from vispeft.training.processor import cpu_has_fast_bf16

    rows = [
        ("vispeft", metadata.version("vispeft")),
        *((name, metadata.version(name)) for name in ("torch", "torchvision", "timm", "pycocotools", "albumentations")),
        ("CPU threads", str(torch.get_num_threads())),
        ("CPU arithmetic", _arithmetic()),
        ("CPU bf16 in hardware", "yes" if cpu_has_fast_bf16() else "no: train.precision=bf16 saves memory, not time"),
        ("GPUs", _gpus()),
        ("automatic precision", choose_precision("cuda" if torch.cuda.is_available() else "cpu", "auto")),
        *describe().items(),
    ]
    show_table("vispeft doctor", ("property", "value"), rows)
    console().print(
        "Start with: vispeft quickstart"
        if not torch.cuda.is_available()
        else "A GPU is available: train.device=auto uses it."
    )


def _listing() -> dict[str, Any]:
    """Return what these commands show of methods, model families and configuration, as tools/write_listing.py wrote it.

    To import it from the packages would import torch.
    """
    from vispeft.io.json_files import read_object

    return read_object(Path(str(resources.files("vispeft") / "assets" / "listing.json")))


def _arithmetic() -> str:
    """Return the CPU capability, and a note on the bitwise reproducibility of matrix products."""
    from vispeft.training.arithmetic import MODE, MODE_VARIABLE, describe_arithmetic

    found = describe_arithmetic()
    mode = f"{MODE_VARIABLE}={found['mkl_cbwr']}" if found["mkl_cbwr"] else f"{MODE_VARIABLE} not set"
    if found["is_reproducible"]:
        return f"{found['cpu_capability']}, bitwise reproducible ({mode})"
    return f"{found['cpu_capability']}, depends on addresses ({mode}): set {MODE_VARIABLE}={MODE} before Python starts"


def _gpus() -> str:
    """Return names and memory of the GPUs."""
    import torch

    if not torch.cuda.is_available():
        return "none that torch can use"
    count = torch.cuda.device_count()
    names = [
        f"{torch.cuda.get_device_name(index)} ({torch.cuda.get_device_properties(index).total_memory / 2**30:.0f} GB)"
        for index in range(count)
    ]
    return ", ".join(names)
