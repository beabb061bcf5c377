"""The low-rank update of rows that belong to different adapters, against that of each adapter alone."""

import pytest
import torch
from torch import Tensor
from vispeft_kernels import KernelError, lora_add
from vispeft_kernels.lora import lora_segments

LENGTHS = {"equal": (4, 4, 4), "unequal": (2, 7, 3), "with an empty one": (5, 0, 7), "one": (12,)}
OFFSETS = {"whole": (0,), "q and v": (0, 6), "one third": (3,)}
RANKS = {"equal ranks": (2, 2, 2), "unequal ranks": (2, 3, 1)}


def tensors(
    lengths: tuple[int, ...], offsets: tuple[int, ...], ranks: tuple[int, ...], dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, list[tuple[Tensor, Tensor]]]:
    """y [3, 4, 9], x [3, 4, 5] and the factors of each run."""
    torch.manual_seed(0)
    parts, width = len(offsets), 9 if offsets == (0,) else 3
    y, x = (torch.randn(3, 4, size, dtype=dtype, requires_grad=True) for size in (9, 5))
    shapes = [((parts * rank, 5), (parts * width, rank)) for rank in ranks[: len(lengths)]]
    factors = [
        (torch.randn(a, dtype=dtype, requires_grad=True), torch.randn(b, dtype=dtype, requires_grad=True))
        for a, b in shapes
    ]
    return y, x, factors


def one_by_one(y, x, factors, scales, lengths, offsets) -> Tensor:
    pieces = zip(y.flatten(0, 1).split(lengths), x.flatten(0, 1).split(lengths), factors, scales, strict=True)
    return torch.cat(
        [
            of_y if pair is None else lora_add(of_y, of_x, *pair, scale, column_offsets=offsets)
            for of_y, of_x, pair, scale in pieces
        ]
    ).view(y.shape)


@pytest.mark.parametrize("ranks", RANKS.values(), ids=RANKS)
@pytest.mark.parametrize("offsets", OFFSETS.values(), ids=OFFSETS)
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_lora_segments__equals_each_adapter_alone_in_values_and_every_gradient(lengths, offsets, ranks) -> None:
    y, x, factors = tensors(lengths, offsets, ranks)
    scales = [0.5, 2.0, -1.0][: len(lengths)]
    result = lora_segments(y, x, factors, scales, lengths, column_offsets=offsets)
    wanted = one_by_one(y, x, factors, scales, lengths, offsets)
    torch.testing.assert_close(result, wanted)
    inputs = [y, x, *(factor for pair in factors for factor in pair)]
    grad = torch.randn_like(wanted)
    ours = torch.autograd.grad(result, inputs, grad, materialize_grads=True)
    theirs = torch.autograd.grad(wanted, inputs, grad, materialize_grads=True)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("lengths", [(4, 4, 4), (3, 4, 5)], ids=["equal", "unequal"])
def test_lora_segments__leaves_rows_without_an_adapter_and_sums_gradients_of_repeated_ones(lengths) -> None:
    y, x, (pair, *_) = tensors(lengths, (0,), (2, 2, 2))
    factors, scales = [pair, None, pair], [0.5] * 3
    result = lora_segments(y, x, factors, scales, lengths)
    assert torch.equal(result.flatten(0, 1)[lengths[0] : -lengths[2]], y.flatten(0, 1)[lengths[0] : -lengths[2]])
    wanted = one_by_one(y, x, factors, scales, lengths, (0,))
    for one, other in zip(
        torch.autograd.grad(result.sum(), [y, x, *pair]), torch.autograd.grad(wanted.sum(), [y, x, *pair]), strict=True
    ):
        torch.testing.assert_close(one, other)
    assert lora_segments(y, x, [None], [1.0], [12]) is not None


@pytest.mark.parametrize("lengths", [(4, 4, 4), (3, 4, 5)], ids=["equal", "unequal"])
def test_lora_segments__overwrites_only_where_it_may(lengths) -> None:
    y, x, factors = tensors(lengths, (0, 6), (2, 2, 2))
    call = (x, factors, [0.5] * 3, lengths)
    wanted, before = lora_segments(y, *call, column_offsets=(0, 6)), y.detach().clone()
    assert torch.equal(lora_segments(y, *call, column_offsets=(0, 6), overwrite=True), wanted)
    with torch.no_grad():
        assert torch.equal(lora_segments(y, *call, column_offsets=(0, 6)), wanted)
        assert torch.equal(y, before)
        result = lora_segments(y, *call, column_offsets=(0, 6), overwrite=True)
        assert torch.equal(y, wanted)
        assert result.data_ptr() == y.data_ptr()


def test_lora_segments__keeps_y_in_its_precision() -> None:
    y, x, factors = tensors((4, 4, 4), (0,), (2, 2, 2), torch.float32)
    half = lora_segments(y.bfloat16(), x, factors, [0.5] * 3, (4, 4, 4))
    assert half.dtype == torch.bfloat16
    wanted = lora_segments(y, x, factors, [0.5] * 3, (4, 4, 4))
    torch.testing.assert_close(half.float(), wanted, rtol=5e-2, atol=5e-2)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(lora_segments(y, x, factors, [0.5] * 3, (4, 4, 4)), wanted)


def test_lora_segments__compiles_in_one_graph() -> None:
    y, x, factors = tensors((4, 4, 4), (0,), (2, 2, 2), torch.float32)
    torch._dynamo.reset()
    compiled = torch.compile(lora_segments, backend="aot_eager", fullgraph=True)
    for lengths in ((4, 4, 4), (3, 4, 5)):
        ours, theirs = (function(y, x, factors, [0.5] * 3, lengths) for function in (compiled, lora_segments))
        torch.testing.assert_close(ours, theirs)
        torch.testing.assert_close(torch.autograd.grad(ours.sum(), x), torch.autograd.grad(theirs.sum(), x))


def test_lora_segments__serves_the_reference_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    y, x, factors = tensors((3, 4, 5), (0,), (2, 3, 1))
    wanted = lora_segments(y, x, [factors[0], None, factors[2]], [0.5] * 3, (3, 4, 5))
    monkeypatch.setenv("VISPEFT_KERNELS", "reference")
    torch.testing.assert_close(lora_segments(y, x, [factors[0], None, factors[2]], [0.5] * 3, (3, 4, 5)), wanted)


@pytest.mark.parametrize("lengths", [(4, 4), (4, 4, 5), (8, 8, -4)], ids=str)
def test_lora_segments__refuses_lengths_that_do_not_fit(lengths) -> None:
    y, x, factors = tensors((4, 4, 4), (0,), (2, 2, 2))
    with pytest.raises(KernelError, match="`lengths`"):
        lora_segments(y, x, factors, [0.5] * 3, lengths)
    with pytest.raises(KernelError, match="`x` must have 4 features"):
        lora_segments(y, x, [(torch.ones(2, 4), torch.ones(9, 2))], [0.5], (12,))
