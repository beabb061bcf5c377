"""Commands that list methods, the configuration's keys and the machine's abilities: methods, schema, doctor."""

from __future__ import annotations

import dataclasses
from importlib import metadata

from vispeft.cli.terminal import console, show_table


def methods() -> None:
    """Show the methods, models and devices that a configuration can name.

    Example: vispeft methods
    """
    from vispeft.models import FAMILIES
    from vispeft.peft import known_methods

    rows = []
    for name, kind in known_methods().items():
        summary = (kind.__doc__ or "").strip().splitlines()[0]
        rows.append((name, ", ".join(_described(field) for field in dataclasses.fields(kind)), summary))
    show_table("Methods (peft.deltas: {pattern: {method: ..., ...}})", ("method", "fields", "what it does"), rows)
    plans = [
        ("head only", "peft.train: ['@heads']"),
        ("last k blocks", "peft.train: ['@heads', '@encoder.blocks[-2:]']"),
        ("biases", "peft.train: ['@heads', '**.bias']"),
        ("norms", "peft.train: ['@heads', '**.norm*.**']"),
        ("full", "peft.train: ['**']"),
    ]
    show_table("Without deltas: what is trained in full", ("plan", "configuration"), plans)
    show_table(
        "Models (model.name, model.size)",
        ("model", "sizes"),
        [(name, ", ".join(family.sizes)) for name, family in FAMILIES.items()],
    )


def schema() -> None:
    """Print the JSON schema of a configuration file, by which editors complete and explain its keys.

    Example: vispeft schema > vispeft.schema.json
    """
    import json

    from vispeft.config import json_schema

    print(json.dumps(json_schema(), indent=1))


def doctor() -> None:
    """Show what this machine offers: versions, devices, precisions, kernels.

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
        ("precision on auto", choose_precision("cuda" if torch.cuda.is_available() else "cpu", "auto")),
        *describe().items(),
    ]
    show_table("vispeft doctor", ("what", "here"), rows)
    console().print(
        "Start with: vispeft quickstart"
        if not torch.cuda.is_available()
        else "A GPU is ready: train.device=auto takes it."
    )


def _described(field: dataclasses.Field[object]) -> str:
    has_default = field.default is not dataclasses.MISSING
    return f"{field.name}={field.default!r}" if has_default else field.name


def _arithmetic() -> str:
    """Tell whether matrix products are reproducible to the bit, and by which setting."""
    from vispeft.training.arithmetic import MODE, MODE_VARIABLE, describe_arithmetic

    found = describe_arithmetic()
    mode = f"{MODE_VARIABLE}={found['mkl_cbwr']}" if found["mkl_cbwr"] else f"{MODE_VARIABLE} not set"
    if found["is_reproducible"]:
        return f"{found['cpu_capability']}, repeats to the bit ({mode})"
    return f"{found['cpu_capability']}, depends on addresses ({mode}): set {MODE_VARIABLE}={MODE} before Python starts"


def _gpus() -> str:
    import torch

    if not torch.cuda.is_available():
        return "none that torch can use"
    count = torch.cuda.device_count()
    names = [
        f"{torch.cuda.get_device_name(index)} ({torch.cuda.get_device_properties(index).total_memory / 2**30:.0f} GB)"
        for index in range(count)
    ]
    return ", ".join(names)
