from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from vispeft.training.arithmetic import (
    MODE_VARIABLE,
    depends_on_alignment,
    describe_arithmetic,
    is_reproducible,
    request_reproducible_arithmetic,
)


def test_is_reproducible__in_the_test_process() -> None:
    """A precondition of every test that compares bits."""
    assert is_reproducible(), f"set {MODE_VARIABLE}=AUTO, or COMPATIBLE where that is not enough, and tell us: {_cpu()}"


@pytest.mark.parametrize(
    ("vendor", "machine", "wanted"),
    [
        ("AuthenticAMD", "x86_64", True),
        ("HygonGenuine", "AMD64", True),
        ("", "x86_64", True),
        ("GenuineIntel", "x86_64", False),
        ("Intel64 Family 6 Model 85 Stepping 7, GenuineIntel", "AMD64", False),
        ("", "aarch64", False),
        ("", "arm64", False),
    ],
)
def test_depends_on_alignment__by_maker_and_machine(vendor: str, machine: str, wanted: bool) -> None:
    assert depends_on_alignment(vendor, machine) == wanted


def test_request__sets_what_the_processor_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(MODE_VARIABLE, raising=False)
    monkeypatch.setattr("vispeft.training.arithmetic.depends_on_alignment", lambda *_: True)
    request_reproducible_arithmetic()
    assert os.environ[MODE_VARIABLE] == "AUTO"


def test_request__keeps_the_value_that_the_user_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MODE_VARIABLE, "COMPATIBLE")
    monkeypatch.setattr("vispeft.training.arithmetic.depends_on_alignment", lambda *_: True)
    request_reproducible_arithmetic()
    assert os.environ[MODE_VARIABLE] == "COMPATIBLE"


def test_describe_arithmetic__is_plain_and_names_the_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MODE_VARIABLE, "AUTO")
    found = describe_arithmetic()
    assert json.loads(json.dumps(found)) == {
        "mkl_cbwr": "AUTO",
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "is_reproducible": True,
    }


def test_doctor__reports_reproducible_arithmetic() -> None:
    """The command line requests it before any computation, also where the environment variable is not set."""
    environment = {key: value for key, value in os.environ.items() if key != MODE_VARIABLE}
    done = subprocess.run(
        [sys.executable, "-m", "vispeft", "doctor"], env=environment, capture_output=True, text=True, check=True
    )
    assert "bitwise reproducible" in done.stdout


def _cpu() -> str:
    return f"{torch.backends.cpu.get_cpu_capability()}, {torch.__config__.parallel_info().splitlines()[0]}"
