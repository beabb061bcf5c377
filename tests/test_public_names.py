"""The face of the package: a change here is a change for every user."""

import inspect
import subprocess
import sys

import vispeft_kernels

import vispeft

NAMES = [
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


def test_vispeft__public_names() -> None:
    assert vispeft.__all__ == NAMES
    assert dir(vispeft) == sorted(NAMES)


def test_vispeft__every_name_is_there_and_documented() -> None:
    for name in NAMES:
        assert inspect.getdoc(getattr(vispeft, name)), name


def test_vispeft__unknown_name() -> None:
    assert getattr(vispeft, "nonsense", None) is None


def test_vispeft__importing_it_loads_nothing() -> None:
    code = "import sys, vispeft; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_vispeft_kernels__public_names() -> None:
    assert vispeft_kernels.__all__ == ["KernelError", "bottleneck", "deformable_attention", "lora_add", "lora_linear"]
