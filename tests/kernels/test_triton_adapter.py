"""Triton's bottleneck adapter against float64, natively on a GPU and in the interpreter elsewhere."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from vispeft_kernels import bottleneck
from vispeft_kernels.adapter import ACTIVATIONS, Maps, autograd, bottleneck_add, reference
from vispeft_kernels.adapter.options import AdapterOptions

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# of the largest entry of a tensor; kernels/README.md has the same table
TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


@dataclass(frozen=True)
class Case:
    rows: int
    inputs: int
    outputs: int
    width: int

    def tensors(self, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        """y and x [1, rows, *] with gaps between their rows, down_w, down_b, up_w, up_b."""
        generator = torch.Generator().manual_seed(self.rows)

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64).to(DEVICE, dtype)

        y, x = draw(1, self.rows, self.outputs + 2)[..., 1:-1], draw(1, self.rows, self.inputs + 3)[..., 3:]
        down_w, up_w = draw(self.width, self.inputs) / self.inputs**0.5, draw(self.outputs, self.width)
        return [y, x, down_w, draw(self.width), up_w, draw(self.outputs)]


CASES = {
    "one of each": Case(1, 1, 1, 1),
    "odd": Case(67, 35, 41, 11),
    "width 8": Case(40, 32, 64, 8),
    "width 512": Case(17, 20, 12, 512),
}


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run kernels in mode `triton` only, and fill every new tensor with NaN."""
    monkeypatch.setenv("VISPEFT_KERNELS", "triton")
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def run(function, inputs: list[Tensor]) -> list[Tensor]:
    """The output of a function of tensors and the gradient of each of them."""
    leaves = [one.detach().requires_grad_() for one in inputs]
    out = function(*leaves)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad.to(out))]


def assert_near(ours: list[Tensor], truth: list[Tensor], dtype: torch.dtype = torch.float32) -> None:
    for index, (one, two) in enumerate(zip(ours, truth, strict=True)):
        error = float((one.double() - two).abs().max() / two.abs().max().clamp(min=1e-30))
        assert error < TOLERANCE[dtype], f"tensor {index}: {error}"


def truth_of(inputs: list[Tensor], activation: str) -> list[Tensor]:

    def reference_add(y: Tensor, x: Tensor, *maps: Tensor) -> Tensor:
        return reference.bottleneck_add(y, x, Maps(*maps), AdapterOptions(activation, 0.5))

    return run(reference_add, [one.double() for one in inputs])


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_bottleneck_add__equals_float64(case: Case) -> None:
    inputs = case.tensors()
    assert_near(run(lambda *t: bottleneck_add(*t, "gelu", 0.5), inputs), truth_of(inputs, "gelu"))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_bottleneck_add__equals_float64_in_half_precision(activation: str, dtype: torch.dtype) -> None:
    inputs = CASES["width 8"].tensors(dtype)
    assert_near(run(lambda *t: bottleneck_add(*t, activation, 0.5), inputs), truth_of(inputs, activation), dtype)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_bottleneck__has_the_residual_s_gradient_too(activation: str) -> None:
    _, x, *maps = Case(50, 37, 37, 19).tensors()
    ours = run(lambda *t: bottleneck(*t, activation, 0.5), [x, *maps])

    def reference_of_itself(x: Tensor, *maps: Tensor) -> Tensor:
        return reference.bottleneck_add(x, x, Maps(*maps), AdapterOptions(activation, 0.5))

    truth = run(reference_of_itself, [one.double() for one in (x, *maps)])
    assert_near(ours, truth)


def test_bottleneck_op__passes_opcheck() -> None:
    y, *inputs = (one.requires_grad_() for one in CASES["one of each"].tensors())
    torch.library.opcheck(autograd.bottleneck_op, (y, *inputs, "gelu", 0.5, "triton"))
    torch.library.opcheck(autograd.bottleneck_op, (None, *inputs, "gelu", 0.5, "triton"))


def test_bottleneck_add__compiles_whole_forward_and_backward() -> None:
    inputs = CASES["odd"].tensors()
    compiled = torch.compile(lambda *t: bottleneck_add(*t, "silu", 0.5), fullgraph=True, backend="aot_eager")
    assert_near(run(compiled, inputs), truth_of(inputs, "silu"))
