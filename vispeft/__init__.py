"""vispeft: parameter-efficient fine-tuning of instance segmentation models.

The names below are the public interface of the package. Each is loaded when it is first used, so that
`import vispeft`, and with it the command line's help, does not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vispeft.engine import load_run
    from vispeft.engine.predict import predict
    from vispeft.errors import VispeftError
    from vispeft.models import build_model, load_bundled
    from vispeft.models.roles import roles_for
    from vispeft.peft import (
        IA3,
        OFT,
        VPT,
        AdaLoRA,
        Adapter,
        AroundDelta,
        Context,
        Convpass,
        Delta,
        DoRA,
        FourierFT,
        Ladder,
        LoHa,
        LoKr,
        LoRA,
        Method,
        Mona,
        Plan,
        ScaleShift,
        Scheduled,
        VeRA,
        WeightDelta,
        check,
        count,
        dequantize,
        disabled,
        inject,
        load_adapter,
        merge,
        quantize,
        register_method,
        remove,
        save_adapter,
        train_mode,
        update_schedules,
    )

_HOMES = {
    "VispeftError": "vispeft.errors",
    "build_model": "vispeft.models",
    "load_bundled": "vispeft.models",
    "roles_for": "vispeft.models.roles",
    "load_run": "vispeft.engine",
    "predict": "vispeft.engine.predict",
    **dict.fromkeys(
        (
            "IA3",
            "AdaLoRA",
            "LoHa",
            "LoKr",
            "FourierFT",
            "OFT",
            "VPT",
            "Adapter",
            "AroundDelta",
            "Context",
            "Convpass",
            "Delta",
            "DoRA",
            "Ladder",
            "LoRA",
            "Method",
            "Mona",
            "Plan",
            "ScaleShift",
            "Scheduled",
            "VeRA",
            "WeightDelta",
            "check",
            "count",
            "dequantize",
            "disabled",
            "inject",
            "load_adapter",
            "merge",
            "quantize",
            "register_method",
            "remove",
            "save_adapter",
            "train_mode",
            "update_schedules",
        ),
        "vispeft.peft",
    ),
}

__all__ = [
    "IA3",
    "OFT",
    "VPT",
    "AdaLoRA",
    "Adapter",
    "AroundDelta",
    "Context",
    "Convpass",
    "Delta",
    "DoRA",
    "FourierFT",
    "Ladder",
    "LoHa",
    "LoKr",
    "LoRA",
    "Method",
    "Mona",
    "Plan",
    "ScaleShift",
    "Scheduled",
    "VeRA",
    "VispeftError",
    "WeightDelta",
    "build_model",
    "check",
    "count",
    "dequantize",
    "disabled",
    "inject",
    "load_adapter",
    "load_bundled",
    "load_run",
    "merge",
    "predict",
    "quantize",
    "register_method",
    "remove",
    "roles_for",
    "save_adapter",
    "train_mode",
    "update_schedules",
]


def __getattr__(name: str) -> Any:
    """Load a public name on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'vispeft' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
