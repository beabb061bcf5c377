"""The bottleneck adapter against its reference, in values, gradients and memory."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from vispeft_kernels import KernelError, bottleneck
from vispeft_kernels.adapter import ACTIVATIONS, Maps, autograd, bottleneck_add, bottleneck_chain, reference
from vispeft_kernels.adapter.options import AdapterOptions


def tensors(dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """y, x, down_w, down_b, up_w, up_b of an adapter from 5 over 3 to 6 features."""
    torch.manual_seed(0)
    shapes = (2, 4, 6), (2, 4, 5), (3, 5), (3,), (6, 3), (6,)
    return tuple(torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes)


def reference_add(y: Tensor, x: Tensor, *maps: Tensor, activation: str = "gelu", scale: float = 0.5) -> Tensor:
    """The reference of `bottleneck_add`."""
    return reference.bottleneck_add(y, x, Maps(*maps), AdapterOptions(activation, scale))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_bottleneck_add__equals_its_reference_and_passes_gradcheck(activation: str) -> None:
    inputs = tensors()
    torch.testing.assert_close(bottleneck_add(*inputs, activation, 0.5), reference_add(*inputs, activation=activation))
    assert torch.autograd.gradcheck(lambda *t: bottleneck_add(*t, activation, 0.5), inputs)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_bottleneck__has_both_gradients_of_its_input(activation: str) -> None:
    _, x, down_w, down_b, _, _ = tensors()
    up_w = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    up_b = torch.randn(5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *t: bottleneck(*t, activation, 0.5), (x, down_w, down_b, up_w, up_b))


def test_bottleneck__is_the_published_formula() -> None:
    _, x, down_w, down_b, _, _ = tensors()
    up_w, up_b = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    wanted = x + 2 * F.linear(F.gelu(F.linear(x, down_w, down_b)), up_w, up_b)
    torch.testing.assert_close(bottleneck(x, down_w, down_b, up_w, up_b, scale=2.0), wanted)


def test_bottleneck__is_the_identity_while_up_is_zero() -> None:
    _, x, down_w, down_b, _, _ = tensors(torch.float32)
    assert torch.equal(bottleneck(x, down_w, down_b, torch.zeros(5, 3), torch.zeros(5)), x)


def test_bottleneck__keeps_only_its_input_and_the_bottleneck() -> None:
    _, x, down_w, down_b, _, _ = tensors()
    up_w, up_b = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    known = {tensor.untyped_storage().data_ptr() for tensor in (x, down_w, up_w)}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        bottleneck(x, down_w, down_b, up_w, up_b)
    assert sum(size for pointer, size in kept.items() if pointer not in known) == 2 * 4 * 3 * 8


def test_bottleneck__under_autocast_has_full_precision_gradients() -> None:
    inputs = tensors(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        stream = inputs[0].to(torch.bfloat16)
        result = bottleneck_add(stream, *inputs[1:])
    assert result.dtype == torch.bfloat16
    wanted = torch.autograd.grad(reference_add(*inputs, scale=1.0).square().sum(), inputs)
    for ours, theirs in zip(torch.autograd.grad(result.float().square().sum(), inputs), wanted, strict=True):
        assert ours.dtype == torch.float32
        assert float((ours - theirs).norm() / theirs.norm()) < 0.03


def test_bottleneck_add__compiles_without_a_graph_break() -> None:
    inputs = tensors(torch.float32)
    compiled = torch.compile(bottleneck_add, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs), bottleneck_add(*inputs))


def test_bottleneck_op__passes_opcheck_on_the_cpu() -> None:
    y, x, *maps = tensors(torch.float32)
    torch.library.opcheck(autograd.bottleneck_op, (y, x, *maps, "silu", 0.5, "torch"))


def test_bottleneck__refuses_tensors_that_do_not_fit() -> None:
    y, x, down_w, down_b, up_w, up_b = tensors()
    with pytest.raises(KernelError, match="`up_w` must be"):
        bottleneck(x, down_w, down_b, up_w, up_b)
    with pytest.raises(KernelError, match="`activation` must be one of"):
        bottleneck_add(y, x, down_w, down_b, up_w, up_b, "tanh")


def chain_tensors(count: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """x, down_w, down_b, up_w and up_b of adapters on 5 features over 3."""
    torch.manual_seed(1)
    shapes = (2, 4, 5), (count, 3, 5), (count, 3), (count, 5, 3), (count, 5)
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("count", [1, 2, 4])
def test_bottleneck_chain__equals_one_adapter_after_the_other(count: int, activation: str) -> None:
    inputs = chain_tensors(count)

    def chained(x: Tensor, *maps: Tensor) -> Tensor:
        return bottleneck_chain(x, *(one.unbind() for one in maps), activation, 0.5)

    def one_by_one(x: Tensor, *maps: Tensor) -> Tensor:
        for one in zip(*maps, strict=True):
            x = reference_add(x, x, *one, activation=activation)
        return x

    result, wanted = chained(*inputs), one_by_one(*inputs)
    grad = torch.randn_like(wanted)
    torch.testing.assert_close(result, wanted)
    for ours, theirs in zip(
        torch.autograd.grad(result, inputs, grad), torch.autograd.grad(wanted, inputs, grad), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_bottleneck_chain__compiles_without_a_graph_break() -> None:
    x, *maps = chain_tensors(2, torch.float32)

    def call(x: Tensor) -> Tensor:
        return bottleneck_chain(x, *(one.unbind() for one in maps), "gelu", 0.5)

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), call(x))


def test_bottleneck_chain__is_the_identity_while_up_is_zero() -> None:
    x, down_w, down_b, up_w, up_b = (one.detach() for one in chain_tensors(3, torch.float32))
    assert torch.equal(bottleneck_chain(x, down_w, down_b, 0 * up_w, 0 * up_b), x)


def test_bottleneck_chain__keeps_its_input_once() -> None:
    x, *maps = chain_tensors(4)
    known = {one.untyped_storage().data_ptr() for one in (x, *maps)}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        bottleneck_chain(x, *maps)
    sizes = [size for pointer, size in kept.items() if pointer not in known]
    weights = sum(one.numel() * 8 for one in (maps[0], maps[2], maps[3]))
    assert sum(sizes) == 2 * 4 * 4 * 3 * 8 + weights  # all z, and the maps side by side
