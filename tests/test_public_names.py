"""The face of the package: a change here is a change for every user."""

import inspect
import subprocess
import sys

import vispeft_kernels

import vispeft

NAMES = [
    "BOFT",
    "IA3",
    "OFT",
    "VPT",
    "AdaLoRA",
    "Adapter",
    "AroundDelta",
    "Compacter",
    "Context",
    "ConvLoRA",
    "Convpass",
    "Delta",
    "DoRA",
    "FacT",
    "FourierFT",
    "Ladder",
    "LoHa",
    "LoKr",
    "LoRA",
    "LoRand",
    "Method",
    "Mona",
    "Plan",
    "Prefix",
    "Rein",
    "RepAdapter",
    "ScaleShift",
    "Scheduled",
    "Sparse",
    "VeRA",
    "VispeftError",
    "WeightDelta",
    "adapter_per_image",
    "adapters",
    "build_model",
    "check",
    "choose_weights",
    "count",
    "dequantize",
    "disabled",
    "drop_adapter",
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
    "set_adapters",
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
