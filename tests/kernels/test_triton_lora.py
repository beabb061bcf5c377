"""Triton's low-rank update against float64, natively on a GPU and in the interpreter elsewhere."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from vispeft_kernels import lora_add, lora_linear
from vispeft_kernels.lora import autograd, lora_update, triton_impl
from vispeft_kernels.lora.options import LoraOptions

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# of the largest entry of a tensor; kernels/README.md has the same table
TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
EACH_DTYPE = pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda dtype: str(dtype).removeprefix("torch."))


@dataclass(frozen=True)
class Case:
    rows: int
    features: int
    outputs: int
    rank: int
    column_offsets: tuple[int, ...] = (0,)
    width: int = 0  # of a part; all outputs if 0
    has_bias: bool = True

    def tensors(self, dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
        """x [1, rows, features] with gaps between its rows, weight, bias, a and b."""
        generator = torch.Generator().manual_seed(seed)
        parts, width = len(self.column_offsets), self.width or self.outputs

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64).to(DEVICE, dtype)

        x = draw(1, self.rows, self.features + 3)[..., 2:-1]
        weight, bias = draw(self.outputs, self.features), draw(self.outputs)
        return [x, weight, bias, draw(parts * self.rank, self.features), draw(parts * width, self.rank)]


CASES = {
    "one of each": Case(1, 1, 1, 1),
    "odd": Case(67, 35, 75, 3),
    "rank 17, no bias": Case(33, 48, 40, 17, has_bias=False),
    "rank 256": Case(9, 40, 33, 256),
    "q and v": Case(70, 24, 90, 2, (0, 60), 30),
    "q, k and v": Case(40, 24, 48, 4, (0, 16, 32), 16),
    "one third": Case(20, 16, 39, 5, (13,), 13),
}
EACH_CASE = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run kernels in mode `triton` only, and fill every new tensor with NaN."""
    monkeypatch.setenv("VISPEFT_KERNELS", "triton")
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.isnan(torch.empty(3)).all()
    yield
    torch.use_deterministic_algorithms(False)


def explicit(
    x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, column_offsets: tuple[int, ...]
) -> Tensor:
    """Return the map with the merged weight `W + scale * B A`, scale 0.5."""
    merged, width = weight.clone(), b.shape[0] // len(column_offsets)
    for first, a_part, b_part in zip(
        column_offsets, a.chunk(len(column_offsets)), b.chunk(len(column_offsets)), strict=True
    ):
        merged[first : first + width] += 0.5 * b_part @ a_part
    return F.linear(x, merged, bias)


def assert_near(ours: list[Tensor], truth: list[Tensor], dtype: torch.dtype) -> None:
    for index, (one, two) in enumerate(zip(ours, truth, strict=True)):
        error = float((one.double() - two).abs().max() / two.abs().max().clamp(min=1e-30))
        assert error < TOLERANCE[dtype], f"tensor {index}: {error}"


def run(function, inputs: list[Tensor | None], seed: int = 1) -> list[Tensor]:
    """The output of a function of tensors and the gradient of each of them."""
    leaves = [None if one is None else one.detach().requires_grad_() for one in inputs]
    out = function(*leaves)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    given = [leaf for leaf in leaves if leaf is not None]
    return [out.detach(), *torch.autograd.grad(out, given, grad.to(out))]


@EACH_DTYPE
@EACH_CASE
def test_lora_linear__equals_float64(case: Case, dtype: torch.dtype) -> None:
    inputs = case.tensors(dtype)
    inputs[2] = inputs[2] if case.has_bias else None
    doubles = [None if one is None else one.double() for one in inputs]
    ours = run(lambda *t: lora_linear(*t, 0.5, column_offsets=case.column_offsets), inputs)
    assert_near(ours, run(lambda *t: explicit(*t, case.column_offsets), doubles), dtype)


@pytest.mark.parametrize("seed", range(3))
def test_lora_linear__equals_float64_on_random_shapes(seed: int) -> None:
    sizes = torch.randint(1, 90, (4,), generator=torch.Generator().manual_seed(40 + seed)).tolist()
    case = Case(sizes[0], sizes[1], sizes[2], 1 + sizes[3] // 3)
    inputs = case.tensors(torch.float32, seed)
    ours = run(lambda *t: lora_linear(*t, 0.5), inputs)
    assert_near(ours, run(lambda *t: explicit(*t, (0,)), [one.double() for one in inputs]), torch.float32)


@EACH_DTYPE
@pytest.mark.parametrize("name", ["odd", "q and v"])
def test_lora_update__equals_float64(name: str, dtype: torch.dtype) -> None:
    case = CASES[name]

    def update(x: Tensor, weight: Tensor, bias: Tensor, a: Tensor, b: Tensor) -> Tensor:
        with torch.no_grad():
            y = F.linear(x, weight, bias)
        return lora_update(y, x, weight, bias, a, b, 0.5, column_offsets=case.column_offsets)

    inputs = case.tensors(dtype)
    truth = run(lambda *t: explicit(*t, case.column_offsets), [one.double() for one in inputs])
    assert_near(run(update, inputs), truth, dtype)


@pytest.mark.parametrize("name", ["odd", "q, k and v"])
def test_lora_add__dropout_has_the_gradients_of_the_mask_that_its_seed_draws(name: str) -> None:
    case, dtype = CASES[name], torch.float32
    x, weight, bias, a, b = case.tensors(dtype)
    y = torch.randn(1, case.rows, case.outputs).to(DEVICE)
    torch.manual_seed(3)
    seed = triton_impl.new_seed(x)
    mask = triton_impl.mask(case.rows, case.features, LoraOptions(1.0, dropout=0.4, seed=seed)).double() / 0.6
    zero = torch.zeros_like(weight).double()
    for call, inputs, truth in (
        (
            lambda y, x, a, b: lora_add(y, x, a, b, 0.5, column_offsets=case.column_offsets, dropout=0.4),
            [y, x, a, b],
            lambda y, x, a, b: y + explicit(x * mask, zero, None, a, b, case.column_offsets),
        ),
        (
            lambda *t: lora_linear(*t, 0.5, column_offsets=case.column_offsets, dropout=0.4),
            [x, weight, bias, a, b],
            lambda x, w, c, a, b: F.linear(x, w, c) + explicit(x * mask, zero, None, a, b, case.column_offsets),
        ),
    ):
        torch.manual_seed(3)
        assert_near(run(call, inputs), run(truth, [one.double() for one in inputs]), dtype)


def test_mask__drops_the_given_share_for_any_blocks_and_differs_by_seed() -> None:
    seed = torch.tensor([2**61 + 12345], device=DEVICE)

    def draw(rows: int, columns: int, seed: Tensor) -> Tensor:
        return triton_impl.mask(rows, columns, LoraOptions(1.0, dropout=0.3, seed=seed))

    mask = draw(130, 200, seed)
    assert abs(float(mask.float().mean()) - 0.7) < 0.01
    assert torch.equal(draw(66, 65, seed), mask[:66, :65])
    assert not torch.equal(draw(130, 200, seed + 2**32), mask)
    columns = mask.float().T
    assert float(torch.corrcoef(columns[:64]).fill_diagonal_(0).abs().max()) < 0.45  # 130 rows, 64 columns


@pytest.mark.parametrize("dropout", [0.0, 0.25])
def test_ops__pass_opcheck(dropout: float) -> None:
    x, weight, bias, a, b = (one.requires_grad_() for one in CASES["odd"].tensors(torch.float32))
    seed = triton_impl.new_seed(x) if dropout else None
    checks = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    options = seed, 0.5, [0], dropout, "triton"
    torch.library.opcheck(autograd.lora_op, (None, x, weight, bias, a, b, *options), test_utils=checks)
    y = torch.randn(1, 67, 75, device=DEVICE, requires_grad=True)
    torch.library.opcheck(autograd.lora_op, (y, x, None, None, a, b, *options), test_utils=checks)


def test_lora_update__compiles_whole_forward_and_backward() -> None:
    case = CASES["q and v"]
    inputs = case.tensors(torch.float32)

    def layer(x: Tensor, weight: Tensor, bias: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return lora_update(F.linear(x, weight, bias), x, weight, bias, a, b, 0.5, column_offsets=case.column_offsets)

    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    truth = run(lambda *t: explicit(*t, case.column_offsets), [one.double() for one in inputs])
    assert_near(run(compiled, inputs), truth, torch.float32)
