"""Triton's deformable attention against `grid_sample` in float64, on a GPU or in the interpreter."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from vispeft_kernels import deformable_attention
from vispeft_kernels.deformable import autograd, deformable_attention_around, triton_impl
from vispeft_kernels.deformable.reference import deformable_attention_reference
from vispeft_kernels.deformable.samples import Samples

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# of the largest entry of a tensor; kernels/README.md has the same table
TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


@dataclass(frozen=True)
class Case:
    batch: int
    queries: int
    heads: int
    dim: int
    shapes: tuple[tuple[int, int], ...]
    points: int
    spread: float = 1.0

    def tensors(self, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        """value with gaps between its heads, locations and weights."""
        generator = torch.Generator().manual_seed(self.queries)
        bags = (self.batch, self.queries, self.heads, len(self.shapes), self.points)
        area = sum(height * width for height, width in self.shapes)
        value = torch.randn(self.batch, area, self.heads, self.dim + 3, generator=generator)[..., 1:-2]
        locations = (torch.rand(*bags, 2, generator=generator) - 0.5) * (1 + self.spread) + 0.5
        weights = torch.rand(bags, generator=generator)
        return [value.to(DEVICE, dtype), locations.to(DEVICE), weights.to(DEVICE)]


CASES = {
    "one of each": Case(1, 1, 1, 1, ((1, 1),), 1),
    "odd": Case(2, 13, 2, 5, ((5, 4), (2, 3)), 2),
    "dim 16, mostly outside": Case(1, 65, 2, 16, ((6, 5), (3, 3)), 2, spread=6.0),
    "dim 128": Case(2, 3, 1, 128, ((4, 3),), 3),
}
EACH_CASE = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@pytest.fixture(autouse=True)
def _by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run kernels in mode `triton` only, and fill the tensors of `torch.empty` with NaN."""
    monkeypatch.setenv("VISPEFT_KERNELS", "triton")
    empty = torch.empty

    def poisoned(*args, **options):
        tensor = empty(*args, **options)
        return tensor.fill_(float("nan")) if tensor.is_floating_point() and not tensor.is_meta else tensor

    monkeypatch.setattr(torch, "empty", poisoned)


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def run(function, inputs: list[Tensor]) -> list[Tensor]:
    """The output of a function of tensors and the gradient of each of them."""
    leaves = [one.detach().requires_grad_() for one in inputs]
    out = function(*leaves)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    return [out.detach(), *torch.autograd.grad(out, leaves, grad.to(out))]


def assert_near(ours: list[Tensor], truth: list[Tensor], dtype: torch.dtype = torch.float32) -> None:
    for index, (one, two) in enumerate(zip(ours, truth, strict=True)):
        error = float((one.double() - two).abs().max() / two.abs().max().clamp(min=1))
        assert error < TOLERANCE[dtype], f"tensor {index}: {error}"


def truth_of(case: Case, inputs: list[Tensor]) -> list[Tensor]:
    return run(lambda *t: deformable_attention_reference(t[0], case.shapes, *t[1:]), [one.double() for one in inputs])


@EACH_CASE
def test_deformable_attention__equals_float64(case: Case) -> None:
    inputs = case.tensors()
    assert_near(run(lambda *t: deformable_attention(t[0], case.shapes, *t[1:]), inputs), truth_of(case, inputs))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_deformable_attention__equals_float64_in_half_precision(dtype: torch.dtype) -> None:
    case = CASES["odd"]
    inputs = case.tensors(dtype)
    ours = run(lambda *t: deformable_attention(t[0], case.shapes, *t[1:]), inputs)
    assert [one.dtype for one in ours] == [dtype, dtype, torch.float32, torch.float32]
    assert_near(ours, truth_of(case, inputs), dtype)


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("name", ["one of each", "odd"])
def test_deformable_attention__is_deterministic_on_request(name: str) -> None:
    case = CASES[name]
    inputs = case.tensors()
    ours, again = (run(lambda *t: deformable_attention(t[0], case.shapes, *t[1:]), inputs) for _ in range(2))
    assert all(torch.equal(one, two) for one, two in zip(ours, again, strict=True))
    assert_near(ours, truth_of(case, inputs))


@pytest.mark.parametrize("needs", [(True, False), (False, True)], ids=["value", "points"])
def test_backward__gives_the_needed_gradients(needs: tuple[bool, bool]) -> None:
    case = CASES["odd"]
    value, *points = case.tensors()
    grad = torch.randn(2, 13, 10).to(DEVICE)
    some = triton_impl.backward(grad, value, case.shapes, Samples(*points), *needs)
    full = triton_impl.backward(grad, value, case.shapes, Samples(*points), True, True)
    assert some.value.shape == (value.shape if needs[0] else (0,))
    assert some.weights.shape == (points[1].shape if needs[1] else (0,))
    for name in ("value", "locations", "weights"):
        one = getattr(some, name)
        assert one.numel() == 0 or torch.allclose(one, getattr(full, name), atol=1e-5)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize(("size", "images"), [(2, 1), (4, 2)], ids=["points for all images", "boxes"])
def test_deformable_attention_around__equals_float64(size: int, images: int, dtype: torch.dtype) -> None:
    case = CASES["odd"]
    value, locations, weights = case.tensors(dtype)
    offsets, logits = (4 * (locations - 0.5)).to(dtype), (5 * weights).to(dtype)
    reference = torch.rand(images, case.queries, size).to(DEVICE)
    pairs = [(value, offsets, logits), (value.double(), offsets.double(), logits.double())]

    def around(value: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
        return deformable_attention_around(value, case.shapes, reference, offsets, logits)

    def composed(value: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
        points = Samples(offsets, logits, reference.double()).resolve(case.shapes)
        return deformable_attention_reference(value, case.shapes, *points)

    assert_near(run(around, list(pairs[0])), run(composed, list(pairs[1])), dtype)


def test_deformable_attention_op__passes_opcheck_with_and_without_a_reference() -> None:
    case = CASES["one of each"]
    value, locations, weights = (one.requires_grad_() for one in case.tensors())
    shapes = [size for shape in case.shapes for size in shape]
    for reference in (None, torch.rand(1, case.queries, 4).to(DEVICE)):
        torch.library.opcheck(autograd.deformable_attention_op, (value, shapes, locations, weights, reference))


def test_deformable_attention__compiles_whole_forward_and_backward() -> None:
    case = CASES["odd"]
    inputs = case.tensors()
    compiled = torch.compile(
        lambda *t: deformable_attention(t[0], case.shapes, *t[1:]), fullgraph=True, backend="aot_eager"
    )
    assert_near(run(compiled, inputs), truth_of(case, inputs))
