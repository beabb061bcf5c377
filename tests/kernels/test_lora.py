"""The low-rank update against its reference, in values, gradients and memory."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from vispeft_kernels import KernelError, lora_add, lora_linear
from vispeft_kernels.lora import autograd, lora_update, reference
from vispeft_kernels.lora.dropout import CPU_ROWS, masks
from vispeft_kernels.lora.options import Factors, LoraOptions

COLUMN_OFFSETS = {"whole": (0,), "q and v": (0, 6), "one third": (3,)}


def tensors(column_offsets: tuple[int, ...], rank: int = 2, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """x, weight, bias, a, b and y for a map from 5 to 9 features."""
    torch.manual_seed(0)
    width = 9 if column_offsets == (0,) else 3
    parts = len(column_offsets)
    shapes = (2, 4, 5), (9, 5), (9,), (parts * rank, 5), (parts * width, rank), (2, 4, 9)
    return tuple(torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes)


def explicit(
    x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, column_offsets: tuple[int, ...]
) -> Tensor:
    """Return the map with the merged weight `W + scale * B A`."""
    merged = weight.clone()
    width = b.shape[0] // len(column_offsets)
    for first, a_part, b_part in zip(
        column_offsets, a.chunk(len(column_offsets)), b.chunk(len(column_offsets)), strict=True
    ):
        merged[first : first + width] += 0.5 * b_part @ a_part
    return F.linear(x, merged, bias)


@pytest.mark.parametrize("column_offsets", COLUMN_OFFSETS.values(), ids=COLUMN_OFFSETS)
def test_lora_linear__equals_the_explicit_formula_in_values_and_every_gradient(column_offsets: tuple[int, ...]) -> None:
    x, weight, bias, a, b, _ = tensors(column_offsets)
    inputs = (x, weight, bias, a, b)
    result, wanted = (
        lora_linear(x, weight, bias, a, b, 0.5, column_offsets=column_offsets),
        explicit(*inputs, column_offsets),
    )
    grad = torch.randn_like(wanted)
    torch.testing.assert_close(result, wanted)
    for ours, theirs in zip(
        torch.autograd.grad(result, inputs, grad), torch.autograd.grad(wanted, inputs, grad), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("column_offsets", COLUMN_OFFSETS.values(), ids=COLUMN_OFFSETS)
def test_lora_add__equals_its_reference_and_passes_gradcheck(column_offsets: tuple[int, ...]) -> None:
    x, _, _, a, b, y = tensors(column_offsets)
    torch.testing.assert_close(
        lora_add(y, x, a, b, 0.5, column_offsets=column_offsets),
        reference.lora_add(y, x, Factors(a, b), LoraOptions(0.5, column_offsets)),
    )
    assert torch.autograd.gradcheck(lambda *t: lora_add(*t, 0.5, column_offsets=column_offsets), (y, x, a, b))


@pytest.mark.parametrize("rank", [1, 3, 8])
@pytest.mark.parametrize("rows", [1, 63, 1000])
def test_lora_linear__serves_odd_sizes(rank: int, rows: int) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(rows, 7), torch.randn(11, 7)
    a, b = torch.randn(rank, 7), torch.randn(11, rank)
    wanted = F.linear(x.double(), (weight + b @ a).double()).float()
    torch.testing.assert_close(lora_linear(x, weight, None, a, b, 1.0), wanted, rtol=1e-4, atol=1e-5)


def test_lora_add__leaves_y_and_other_columns_as_they_are() -> None:
    x, _, _, a, b, y = tensors((0, 6))
    before = y.detach().clone()
    result = lora_add(y, x, a, b, 0.5, column_offsets=(0, 6))
    assert torch.equal(y, before)
    assert torch.equal(result[..., 3:6], before[..., 3:6])


def test_lora_add__is_the_identity_while_b_is_zero() -> None:
    x, _, _, a, b, y = tensors((0,), dtype=torch.float32)
    assert torch.equal(lora_add(y, x, a, torch.zeros_like(b), 0.5), y)


def test_lora_update__may_be_followed_by_an_operation_in_place() -> None:
    x, weight, bias, a, b, _ = tensors((0,))
    inputs = (x, weight, bias, a, b)
    with torch.no_grad():
        y = F.linear(x, weight, bias)
    result = lora_update(y, *inputs, 0.5).relu_()
    wanted = explicit(*inputs, (0,)).relu()
    for ours, theirs in zip(
        torch.autograd.grad(result.sum(), inputs), torch.autograd.grad(wanted.sum(), inputs), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_lora_update__recomputes_x_instead_of_keeping_it() -> None:
    x, weight, bias, a, b, _ = tensors((0,))
    source = x.detach().clone()
    seen = F.gelu(x)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t.data_ptr()), t)[1], lambda t: t):
        y = F.linear(seen, weight, bias).detach()
        result = lora_update(y, seen, weight, bias, a, b, 0.5, recompute=(F.gelu, source))
    assert source.data_ptr() in kept
    assert seen.data_ptr() not in kept[1:]
    grads = torch.autograd.grad(result.square().sum(), (x, a, b))
    wanted = torch.autograd.grad(explicit(F.gelu(x), weight, bias, a, b, (0,)).square().sum(), (x, a, b))
    for ours, theirs in zip(grads, wanted, strict=True):
        torch.testing.assert_close(ours, theirs)


def kept_bytes(call: Callable[[], Tensor], known: tuple[Tensor, ...]) -> int:
    """Bytes of storages kept for backward beyond those of `known`."""
    own = {tensor.untyped_storage().data_ptr() for tensor in known}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = call()
    del result
    return sum(kept.values())


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_lora_linear__keeps_only_the_rank_sized_product_beside_its_inputs(dropout: float) -> None:
    x, weight, bias, a, b, _ = tensors((0,))
    kept = kept_bytes(lambda: lora_linear(x, weight, bias, a, b, 0.5, dropout=dropout), (x, weight, bias, a, b))
    assert kept == 2 * 4 * 2 * 8  # rows x rank x float64


def test_lora_add__dropout_has_the_gradients_of_its_own_mask() -> None:
    torch.manual_seed(0)
    rows = CPU_ROWS + 7
    x, y = torch.randn(rows, 6, dtype=torch.float64, requires_grad=True), torch.zeros(rows, 4, dtype=torch.float64)
    a = torch.randn(2, 6, dtype=torch.float64, requires_grad=True)
    b = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(5)
    result = lora_add(y, x, a, b, 0.5, dropout=0.25)
    torch.manual_seed(5)
    seed = torch.randint(2**62, ())
    mask = torch.cat(list(masks(x.detach(), 0.25, seed))) / 0.75
    wanted = 0.5 * (x * mask) @ a.t() @ b.t()
    grad = torch.randn_like(wanted)
    torch.testing.assert_close(result, wanted)
    for ours, theirs in zip(
        torch.autograd.grad(result, (x, a, b), grad), torch.autograd.grad(wanted, (x, a, b), grad), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_masks__drop_the_given_share_and_repeat_with_their_seed() -> None:
    x = torch.ones(2000, 50)
    first, again, other = (torch.cat(list(masks(x, 0.2, torch.tensor([seed])))) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert abs(float(first.mean()) - 0.8) < 0.01


def test_lora_linear__under_autocast_gives_bf16_and_full_precision_gradients() -> None:
    x, weight, bias, a, b, _ = tensors((0,), dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = F.linear(x, weight, bias)
        result = lora_update(y, x, weight, bias, a, b, 0.5)
        loss = result.float().square().sum()
    assert result.dtype == torch.bfloat16
    wanted = explicit(x, weight, bias, a, b, (0,))
    torch.testing.assert_close(result.float(), wanted, rtol=0.05, atol=0.1)
    for ours, theirs in zip(
        torch.autograd.grad(loss, (x, a, b)), torch.autograd.grad(wanted.square().sum(), (x, a, b)), strict=True
    ):
        assert ours.dtype == torch.float32
        assert float((ours - theirs).norm() / theirs.norm()) < 0.02


def test_lora_linear__compiles_without_a_graph_break() -> None:
    x, weight, bias, a, b, _ = tensors((0, 6), dtype=torch.float32)

    def call(*inputs: Tensor) -> Tensor:
        return lora_linear(*inputs, 0.5, column_offsets=(0, 6))

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    inputs = (x, weight, bias, a, b)
    torch.testing.assert_close(compiled(*inputs), call(*inputs))
    for ours, theirs in zip(
        torch.autograd.grad(compiled(*inputs).sum(), inputs),
        torch.autograd.grad(call(*inputs).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_ops__pass_opcheck_on_the_cpu(dropout: float) -> None:
    x, weight, bias, a, b, y = tensors((0, 6), dtype=torch.float32)
    seed = torch.tensor([7]) if dropout else None
    options = seed, 0.5, [0, 6], dropout, "torch"
    torch.library.opcheck(autograd.lora_op, (None, x, weight, bias, a, b, *options))
    torch.library.opcheck(autograd.lora_op, (y, x, None, None, a, b, *options))


def test_lora_add__runs_its_reference_where_the_environment_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    x, _, _, a, b, y = tensors((0,))
    monkeypatch.setenv("VISPEFT_KERNELS", "reference")
    assert type(lora_add(y, x, a, b, 0.5).grad_fn).__name__ != "_LoraBackward"
    monkeypatch.setenv("VISPEFT_KERNELS", "auto")
    assert type(lora_add(y, x, a, b, 0.5).grad_fn).__name__ == "_LoraBackward"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a": torch.zeros(3, 5)}, r"`a` must be \[parts \* r, in\]"),
        ({"x": torch.zeros(2, 4, 6)}, "`x` must have 5 features"),
        ({"column_offsets": (8,)}, "`column_offsets`"),
    ],
    ids=["rank", "input", "columns"],
)
def test_lora_add__refuses_tensors_that_do_not_fit(change: dict[str, object], message: str) -> None:
    options: dict[str, object] = {
        "y": torch.zeros(2, 4, 9),
        "x": torch.zeros(2, 4, 5),
        "a": torch.zeros(2, 5),
        "b": torch.zeros(9, 2),
        "scale": 1.0,
    }
    with pytest.raises(KernelError, match=message):
        lora_add(**{**options, **change})  # type: ignore[arg-type]
