"""Commands that list methods, configuration keys and the machine's capabilities: methods, schema, doctor."""

from __future__ import annotations

import dataclasses
from importlib import metadata

from vispeft.cli.terminal import console, show_table


def methods() -> None:
    """Show the available methods, models and devices.

    Example: vispeft methods
    """
    from vispeft.models import FAMILIES
    from vispeft.peft import known_methods

    rows = []
    for name, kind in known_methods().items():
        summary = (kind.__doc__ or "").strip().splitlines()[0]
        rows.append((name, ", ".join(_field_text(field) for field in dataclasses.fields(kind)), summary))
    show_table("Methods (peft.deltas: {pattern: {method: ..., ...}})", ("method", "fields", "summary"), rows)
    plans = [
        ("head only", "peft.train: ['@heads']"),
        ("last k blocks", "peft.train: ['@heads', '@encoder.blocks[-2:]']"),
        ("biases", "peft.train: ['@heads', '**.bias']"),
        ("norms", "peft.train: ['@heads', '@norms']"),
        ("full", "peft.train: ['**']"),
    ]
    show_table("Parameters trained in full, without deltas", ("plan", "configuration"), plans)
    families = [(name, ", ".join(family.sizes)) for name, family in FAMILIES.items()]
    show_table("Models (model.name, model.size)", ("model", "sizes"), families)


def schema() -> None:
    """Print the JSON schema of a configuration file, for completion and help in editors.

    Example: vispeft schema > vispeft.schema.json
    """
    import json

    from vispeft.config import json_schema

    print(json.dumps(json_schema(), indent=1))


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


def _field_text(field: dataclasses.Field[object]) -> str:
    """Return the name of a method's field, with its default if it has one."""
    has_default = field.default is not dataclasses.MISSING
    return f"{field.name}={field.default!r}" if has_default else field.name


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
