"""Choice of the implementation of a call."""

import importlib.metadata
import os

import pytest
import torch
import vispeft_kernels
from vispeft_kernels import KernelError, dispatch, launch

SHAPES = [(2, 2)]


def attend() -> torch.Tensor:
    locations = torch.full((1, 1, 1, 1, 1, 2), 0.4)
    return vispeft_kernels.deformable_attention(torch.ones(1, 4, 1, 1), SHAPES, locations, torch.ones(1, 1, 1, 1, 1))


OPERATIONS = {
    "deformable_attention": attend,
    "lora": lambda: vispeft_kernels.lora_add(
        torch.ones(1, 3), torch.ones(1, 2), torch.ones(1, 2), torch.ones(3, 1), 1.0
    ),
    "adapter": lambda: vispeft_kernels.bottleneck(
        torch.ones(1, 2), torch.ones(1, 2), torch.ones(1), torch.ones(2, 1), torch.ones(2)
    ),
}
EACH_OPERATION = pytest.mark.parametrize("call", OPERATIONS.values(), ids=OPERATIONS.keys())


def test_requested__is_auto_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(dispatch.VARIABLE, raising=False)
    assert dispatch.requested() == "auto"
    monkeypatch.setenv(dispatch.VARIABLE, "")
    assert dispatch.requested() == "auto"


def test_requested__refuses_an_unknown_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(dispatch.VARIABLE, "tritton")
    with pytest.raises(
        KernelError, match=r"`VISPEFT_KERNELS` must be one of auto, reference, triton, but is 'tritton'"
    ):
        dispatch.requested()


@pytest.mark.parametrize("before", [None, "auto"])
def test_requesting__ends_with_the_earlier_mode(before: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(dispatch.VARIABLE, raising=False)
    if before is not None:
        monkeypatch.setenv(dispatch.VARIABLE, before)

    def fail() -> None:
        with dispatch.requesting("reference"):
            assert dispatch.requested() == "reference"
            raise KernelError("inside")

    with pytest.raises(KernelError, match="inside"):
        fail()
    assert os.environ.get(dispatch.VARIABLE) == before


def test_choose__takes_the_requested_implementation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(dispatch.VARIABLE, raising=False)
    tensors = [torch.ones(1)]
    assert dispatch.choose("op", "fast", tensors) == "fast"
    monkeypatch.setenv(dispatch.VARIABLE, "reference")
    assert dispatch.choose("op", "fast", tensors) == "reference"


@EACH_OPERATION
def test_choose__never_falls_back_from_a_requested_implementation(call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(dispatch.VARIABLE, "triton")
    with pytest.raises(KernelError, match=r"asks for 'triton', but its kernels cannot serve `.*` here: "):
        call()


@pytest.mark.skipif(launch.is_interpreted(), reason="the interpreter serves the CPU")
@pytest.mark.parametrize(
    ("tensor", "limits", "reason"),
    [
        (torch.ones(1, dtype=torch.float64), "", "a tensor is torch.float64"),
        (torch.ones(1), "", "its tensors are on cpu, not on a CUDA device"),
        (torch.ones(1), "rank 300 is above 256", "rank 300 is above 256"),
    ],
    ids=["dtype", "device", "size"],
)
def test_choose__gives_the_reason_that_triton_cannot_serve(
    tensor: torch.Tensor, limits: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "_missing_triton", lambda: "")
    monkeypatch.setenv(dispatch.VARIABLE, "triton")
    with pytest.raises(KernelError, match=reason):
        dispatch.choose("op", "fast", [tensor], limits)
    monkeypatch.setenv(dispatch.VARIABLE, "auto")
    assert dispatch.choose("op", "fast", [tensor], limits) == "fast"


@pytest.mark.parametrize(
    ("version", "reason"),
    [
        ("3.5.1", "triton is 3.5.1, but 3.6 or newer is needed"),
        ("3.6.0", ""),
        ("3.10.0+git", ""),
        (None, "not installed"),
    ],
)
def test_unsupported_reason__depends_on_the_version_of_triton(
    version: str | None, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def version_of(name: str) -> str:
        if version is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(importlib.metadata, "version", version_of)
    found = launch.unsupported_reason([torch.ones(1)])
    assert reason in found if reason else "triton" not in found


@EACH_OPERATION
def test_choose__is_read_at_every_call(call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(dispatch.VARIABLE, "reference")
    reference = call()
    monkeypatch.setenv(dispatch.VARIABLE, "auto")
    assert torch.allclose(call(), reference)
    monkeypatch.setenv(dispatch.VARIABLE, "nonsense")
    with pytest.raises(KernelError):
        call()


def test_describe__has_a_text_for_each_operation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(dispatch.VARIABLE, raising=False)
    texts = dispatch.describe()
    assert set(texts) == {"VISPEFT_KERNELS", "triton", *OPERATIONS}
    assert texts["VISPEFT_KERNELS"] == "auto"
    assert "gather" in texts["deformable_attention"]
    monkeypatch.setenv(dispatch.VARIABLE, "reference")
    assert dispatch.describe()["lora"].startswith("reference")


@pytest.mark.parametrize("mode", ["triton", "nonsense"])
def test_describe__has_an_error_for_a_mode_that_cannot_be_served(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(dispatch.VARIABLE, mode)
    assert dispatch.describe()["lora"].startswith("error: ")


def test_vispeft_kernels__names_are_the_contract() -> None:
    names = {"KernelError", "bottleneck", "deformable_attention", "lora_add", "lora_linear"}
    assert set(vispeft_kernels.__all__) == names
