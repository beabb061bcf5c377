"""`deformable_attention` against its reference in float64, forward and every gradient."""

import warnings
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from vispeft_kernels import KernelError, deformable_attention
from vispeft_kernels.deformable import known_deformable_attention, torch_impl
from vispeft_kernels.deformable.padded_levels import level_views, pad_levels
from vispeft_kernels.deformable.reference import deformable_attention_reference

FLOAT32_TOLERANCE = 2e-5


@dataclass(frozen=True)
class Case:
    batch: int
    queries: int
    heads: int
    dim: int
    shapes: tuple[tuple[int, int], ...]
    points: int
    spread: float = 1.0  # locations cover -spread / 2 to 1 + spread / 2 of the level

    def tensors(self, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        bags = (self.batch, self.queries, self.heads, len(self.shapes), self.points)
        area = sum(height * width for height, width in self.shapes)
        value = torch.randn(self.batch, area, self.heads, self.dim, generator=generator, dtype=torch.float64)
        locations = torch.rand(*bags, 2, generator=generator, dtype=torch.float64)
        weights = torch.rand(bags, generator=generator, dtype=torch.float64)
        locations = (locations - 0.5) * (1 + self.spread) + 0.5
        return value.to(dtype), locations.to(dtype), weights.to(dtype)


CASES = {
    "one of each": Case(1, 1, 1, 1, ((1, 1),), 1),
    "odd sizes": Case(2, 13, 3, 5, ((7, 5), (3, 4), (1, 1)), 3),
    "rising levels": Case(1, 9, 2, 8, ((2, 3), (9, 4), (5, 17)), 2),
    "long and thin": Case(2, 7, 1, 3, ((1, 19), (23, 1)), 4),
    "mostly outside": Case(2, 11, 2, 4, ((6, 5), (3, 3)), 4, spread=6.0),
    "more points than rows": Case(1, 300, 2, 4, ((5, 4), (2, 2)), 3),
    "many levels": Case(1, 6, 2, 4, ((8, 8), (7, 7), (6, 5), (4, 4), (3, 2), (1, 2)), 1),
}
EACH_CASE = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def run(function, case: Case, tensors, *, needs=(True, True, True)) -> list[Tensor | None]:
    """The output and the gradients of value, locations and weights."""
    inputs = [tensor.clone().requires_grad_(need) for tensor, need in zip(tensors, needs, strict=True)]
    out = function(inputs[0], list(case.shapes), inputs[1], inputs[2])
    generator = torch.Generator().manual_seed(1)
    grad = torch.randn(out.shape, generator=generator, dtype=torch.float64)
    out.backward(grad.to(out.dtype))
    return [out.detach(), *(tensor.grad for tensor in inputs)]


def worst(ours: list[Tensor | None], truth: list[Tensor | None]) -> float:
    """The largest difference, relative to the largest entry of each tensor."""
    pairs = zip(ours, truth, strict=True)
    return max(float((one.double() - two).abs().max() / two.abs().max().clamp(min=1)) for one, two in pairs)


@EACH_CASE
def test_deformable_attention__equals_reference_in_float64(case: Case) -> None:
    tensors = case.tensors()
    assert worst(run(deformable_attention, case, tensors), run(deformable_attention_reference, case, tensors)) < 1e-12


@EACH_CASE
def test_deformable_attention__equals_float64_reference_in_float32(case: Case) -> None:
    tensors = case.tensors(torch.float32)
    truth = run(deformable_attention_reference, case, [tensor.double() for tensor in tensors])
    assert worst(run(deformable_attention, case, tensors), truth) < FLOAT32_TOLERANCE


@pytest.mark.parametrize("seed", range(4))
def test_deformable_attention__equals_reference_on_random_shapes(seed: int) -> None:
    generator = torch.Generator().manual_seed(100 + seed)
    sizes = torch.randint(1, 12, (13,), generator=generator).tolist()
    shapes = tuple((sizes[2 * level], sizes[2 * level + 1]) for level in range(1 + sizes[12] % 4))
    case = Case(1 + sizes[8] % 3, 3 * sizes[9], 1 + sizes[10] % 5, sizes[11], shapes, 1 + sizes[12] % 5, spread=0.6)
    tensors = case.tensors(seed=seed)
    assert worst(run(deformable_attention, case, tensors), run(deformable_attention_reference, case, tensors)) < 1e-12


def test_deformable_attention__is_the_same_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(3, 21, 6, 4, ((5, 6), (3, 2)), 2)
    tensors = case.tensors()
    whole = run(deformable_attention, case, tensors)
    for points_at_once in (1, 170, 3 * 170, 13 * 84):  # one head, two heads, an image, two images
        monkeypatch.setattr(torch_impl, "POINTS_AT_ONCE", points_at_once)
        assert worst(run(deformable_attention, case, tensors), whole) < 1e-14


def test_deformable_attention__is_the_same_with_rows_beyond_int16(monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES["more points than rows"]
    whole = run(deformable_attention, case, case.tensors())
    monkeypatch.setattr(torch_impl, "ROWS_AT_ONCE", 1)
    assert worst(run(deformable_attention, case, case.tensors()), whole) < 1e-14


def test_deformable_attention__is_the_same_sorted_by_radix_and_by_comparison() -> None:
    case = Case(1, 700, 1, 2, ((4, 3), (2, 2)), 4)  # 5600 points: padded to what torch sorts by radix
    assert torch_impl.RADIX_SORT_SIZE // 8 < 5600 < torch_impl.RADIX_SORT_SIZE
    tensors = case.tensors()
    assert worst(run(deformable_attention, case, tensors), run(deformable_attention_reference, case, tensors)) < 1e-12


@pytest.mark.parametrize(
    "needs", [(True, False, False), (False, True, False), (False, False, True), (False, True, True)], ids=str
)
def test_deformable_attention__gives_the_requested_gradients(needs: tuple[bool, bool, bool]) -> None:
    case = CASES["odd sizes"]
    full = run(deformable_attention, case, case.tensors())
    some = run(deformable_attention, case, case.tensors(), needs=needs)
    for need, gradient, expected in zip(needs, some[1:], full[1:], strict=True):
        assert torch.equal(gradient, expected) if need else gradient is None


def test_deformable_attention__passes_gradcheck() -> None:
    case = Case(2, 3, 2, 2, ((3, 4), (2, 2)), 2, spread=0.4)
    inputs = [tensor.requires_grad_() for tensor in case.tensors(seed=3)]
    assert torch.autograd.gradcheck(lambda v, loc, w: deformable_attention(v, case.shapes, loc, w), inputs)


def test_deformable_attention__is_zero_with_zero_gradients_far_outside() -> None:
    case = CASES["odd sizes"]
    value, locations, weights = case.tensors(torch.float32)
    far = torch.tensor([1e30, -1e30, 3.0, -2.0, 1e9, float("inf")])[torch.arange(locations.numel()) % 6]
    out, *grads = run(deformable_attention, case, (value, far.view(locations.shape), weights))
    assert all(float(tensor.abs().max()) == 0 for tensor in (out, *grads))


def test_deformable_attention__propagates_nan() -> None:
    case = CASES["odd sizes"]
    value, locations, weights = case.tensors(torch.float32)
    locations[1, 4, 2, 1, 0, 0] = float("nan")
    out, *_ = run(deformable_attention, case, (value, locations, weights))
    bad = out.view(2, 13, 3, 5).isnan()
    assert bad[1, 4, 2].all()
    assert bad.sum() == 5


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 1e-2), (torch.float16, 1e-3)], ids=str)
def test_deformable_attention__computes_half_precisions_in_float32(dtype: torch.dtype, tolerance: float) -> None:
    case = CASES["odd sizes"]
    tensors = case.tensors(dtype)
    ours = run(deformable_attention, case, tensors)
    truth = run(deformable_attention_reference, case, [tensor.double() for tensor in tensors])
    assert [tensor.dtype for tensor in ours] == [dtype] * 4
    assert worst(ours, truth) < tolerance
    # only the result is rounded
    assert torch.equal(ours[0], deformable_attention(tensors[0].float(), case.shapes, *tensors[1:]).to(dtype))


def test_deformable_attention__takes_mixed_dtypes_under_autocast() -> None:
    case = CASES["odd sizes"]
    value, locations, weights = case.tensors(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        ours = run(deformable_attention, case, (value.bfloat16(), locations, weights))
    truth = run(deformable_attention, case, (value.bfloat16().float(), locations, weights))
    assert [tensor.dtype for tensor in ours] == [torch.bfloat16, torch.bfloat16, torch.float32, torch.float32]
    assert worst(ours, [tensor.double() for tensor in truth]) < 1e-2


def test_deformable_attention__takes_strided_inputs() -> None:
    case = CASES["odd sizes"]
    value, locations, weights = case.tensors()
    strided = (
        value.transpose(1, 3).contiguous().transpose(1, 3),
        torch.stack([locations, locations], dim=0)[1].transpose(0, 1).contiguous().transpose(0, 1),
        weights.flip(4).contiguous().flip(4)[:, :, :, :, :],
    )
    assert worst(run(deformable_attention, case, strided), run(deformable_attention, case, case.tensors())) < 1e-14
    grad = torch.ones(()).double().expand(2, 13, 15)  # a gradient without memory of its own
    leaf = value.clone().requires_grad_()
    deformable_attention(leaf, case.shapes, locations, weights).backward(grad)
    assert leaf.grad is not None


@pytest.mark.parametrize("empty", ["queries", "points", "batch"])
def test_deformable_attention__accepts_empty_tensors(empty: str) -> None:
    case = Case(0 if empty == "batch" else 2, 0 if empty == "queries" else 3, 2, 4, ((3, 2),), int(empty != "points"))
    out, grad_value, *_ = run(deformable_attention, case, case.tensors(torch.float32))
    assert out.shape == (case.batch, case.queries, 8)
    assert not out.any()
    assert grad_value.shape == (case.batch, 6, 2, 4)
    assert not grad_value.any()


def test_deformable_attention__repeats_to_the_bit() -> None:
    case = Case(2, 120, 2, 8, ((6, 6), (3, 3)), 4)
    first, second = (run(deformable_attention, case, case.tensors(torch.float32)) for _ in range(2))
    assert all(torch.equal(one, two) for one, two in zip(first, second, strict=True))


def test_deformable_attention__gives_the_same_batched_and_alone() -> None:
    case = Case(3, 20, 2, 8, ((6, 6), (3, 3)), 4)
    value, locations, weights = case.tensors(torch.float32)
    batched = deformable_attention(value, case.shapes, locations, weights)
    for image in range(3):
        alone = [tensor[image : image + 1] for tensor in (value, locations, weights)]
        assert torch.equal(deformable_attention(alone[0], case.shapes, *alone[1:])[0], batched[image])


def test_deformable_attention__keeps_only_its_inputs_for_backward() -> None:
    case = CASES["odd sizes"]
    inputs = [tensor.requires_grad_() for tensor in case.tensors(torch.float32)]
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        deformable_attention(inputs[0], case.shapes, *inputs[1:])
    assert {tensor.data_ptr() for tensor in kept} == {tensor.data_ptr() for tensor in inputs}


def test_deformable_attention__gives_no_warning() -> None:
    case = CASES["odd sizes"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(deformable_attention, case, case.tensors())


def test_deformable_attention__passes_opcheck() -> None:
    case = CASES["odd sizes"]
    value, locations, weights = (tensor.requires_grad_() for tensor in case.tensors(torch.float32))
    flat = [size for shape in case.shapes for size in shape]
    torch.library.opcheck(torch.ops.vispeft.deformable_attention.default, (value, flat, locations, weights, None))
    grad = torch.randn(2, 13, 15)
    plain = [tensor.detach() for tensor in (value, locations, weights)]
    for needs in ((True, True), (True, False), (False, True)):
        arguments = (grad, plain[0], flat, *plain[1:], None, list(needs))
        torch.library.opcheck(torch.ops.vispeft.deformable_attention_backward.default, arguments)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_deformable_attention__compiles_without_a_graph_break(backend: str) -> None:
    case = CASES["odd sizes"]
    compiled = torch.compile(deformable_attention, fullgraph=True, backend=backend)
    tensors = case.tensors(torch.float32)
    eager = [tensor.double() for tensor in run(deformable_attention, case, tensors)]
    assert worst(run(compiled, case, tensors), eager) < 1e-6


def test_deformable_attention__exports_as_one_node_for_any_number_of_queries() -> None:
    case = CASES["odd sizes"]

    class Module(torch.nn.Module):
        def forward(self, value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
            return deformable_attention(value, case.shapes, locations, weights)

    value, locations, weights = case.tensors(torch.float32)
    queries = torch.export.Dim("queries", min=2)
    dynamic = ({}, {1: queries}, {1: queries})
    program = torch.export.export(Module(), (value, locations, weights), dynamic_shapes=dynamic)
    calls = [node for node in program.graph.nodes if node.op == "call_function"]
    assert [str(node.target) for node in calls] == ["vispeft.deformable_attention.default"]
    some = program.module()(value, locations[:, :5], weights[:, :5])
    assert torch.equal(some, deformable_attention(value, case.shapes, locations[:, :5], weights[:, :5]))


def test_deformable_attention__reference_differentiates_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VISPEFT_KERNELS", "reference")
    case = Case(1, 2, 1, 2, ((3, 3),), 1, spread=0.2)
    inputs = [tensor.requires_grad_() for tensor in case.tensors(seed=5)]
    try:
        passes = torch.autograd.gradgradcheck(lambda v, loc, w: deformable_attention(v, case.shapes, loc, w), inputs)
    except RuntimeError as error:
        if "grid_sampler_2d_backward is not implemented" not in str(error):
            raise
        pytest.skip("this torch cannot differentiate grid_sample twice")
    assert passes


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_deformable_attention__equals_the_cpu_on_a_gpu() -> None:
    case = CASES["odd sizes"]
    tensors = case.tensors(torch.float32)
    on_gpu = run(lambda *args: deformable_attention(*args), case, [tensor.cuda() for tensor in tensors])
    assert worst([t.cpu() for t in on_gpu], run(deformable_attention, case, [t.double() for t in tensors])) < 1e-4


BAD = {
    "value of three dimensions": (lambda v, s, x, w: (v.flatten(2), s, x, w), r"`value` must be \[B, S, heads, dim\]"),
    "no level": (lambda v, s, x, w: (v, [], x, w), r"`spatial_shapes` must be one \(H, W\)"),
    "an empty level": (lambda v, s, x, w: (v, [(0, 4), *s[1:]], x, w), "`spatial_shapes` must be one"),
    "pixels that do not add up": (lambda v, s, x, w: (v[:, 1:], s, x, w), r"48 in all, but has 47"),
    "a level too few": (lambda v, s, x, w: (v, s, x[:, :, :, :2], w), r"\[2, Q, 3, 3, points, 2\]"),
    "other heads": (lambda v, s, x, w: (v[:, :, :2], s, x, w), "`sampling_locations` must be"),
    "other batch": (lambda v, s, x, w: (v[:1], s, x, w), "`sampling_locations` must be"),
    "three coordinates": (lambda v, s, x, w: (v, s, torch.cat([x, x[..., :1]], -1), w), "`sampling_locations` must be"),
    "weights of other queries": (lambda v, s, x, w: (v, s, x, w[:, 1:]), "`attention_weights` must be"),
    "integer values": (lambda v, s, x, w: (v.long(), s, x, w), "`value` must be of a floating dtype"),
}


@pytest.mark.parametrize(("spoil", "message"), BAD.values(), ids=BAD.keys())
def test_deformable_attention__refuses(spoil, message: str) -> None:
    case = CASES["odd sizes"]
    value, locations, weights = case.tensors(torch.float32)
    with pytest.raises(KernelError, match=message):
        deformable_attention(*spoil(value, list(case.shapes), locations, weights))


def test_pad_levels__separates_levels_by_zeros() -> None:
    for shapes in (CASES["many levels"].shapes, CASES["long and thin"].shapes, ((9, 4), (2, 30), (3, 3), (3, 3))):
        layout = pad_levels(shapes)
        planes = torch.zeros(1, layout.rows, 1, 1)
        value = torch.ones(1, sum(height * width for height, width in shapes), 1, 1)
        for plane, level in level_views(planes, value, layout):
            plane.copy_(level)
        assert planes.sum() == value.numel()  # no two levels overlap
        filled = planes.view(-1).bool()
        for (height, width), start in zip(shapes, layout.first_pixels, strict=True):
            around = {
                start + y * layout.stride + x
                for y in range(-2, height + 2)
                for x in range(-2, width + 2)
                if not (0 <= y < height and 0 <= x < width)
            }
            assert min(around) >= 0
            assert max(around) < layout.rows
            assert not filled[list(around)].any()


def test_level_views__holds_every_pixel_once_in_order() -> None:
    shapes = CASES["rising levels"].shapes
    layout = pad_levels(shapes)
    value = torch.randn(2, sum(height * width for height, width in shapes), 3, 4)
    planes = torch.zeros(2, layout.rows, 3, 4)
    for plane, level in level_views(planes, value, layout):
        plane.copy_(level)
    pixels = [plane.flatten(1, 2) for plane, _ in level_views(planes, value, layout)]
    assert torch.equal(torch.cat(pixels, 1), value)


@pytest.mark.parametrize("mode", ["auto", "reference"])
def test_known_output__gives_its_values_and_the_references_gradients(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VISPEFT_KERNELS", mode)
    case = CASES["odd sizes"]
    output = deformable_attention_reference(case.tensors()[0], case.shapes, *case.tensors()[1:])

    def known(value: Tensor, shapes: list[tuple[int, int]], *points: Tensor) -> Tensor:
        return known_deformable_attention(output, value, shapes, *points)

    ours = run(known, case, case.tensors())
    assert ours[0] is not None
    assert torch.equal(ours[0], output)
    assert worst(ours, run(deformable_attention_reference, case, case.tensors())) < 1e-10


def test_known_output__can_be_differentiated_twice() -> None:
    case = Case(1, 2, 1, 2, ((3, 2),), 2, spread=0.0)
    output = deformable_attention_reference(case.tensors()[0], case.shapes, *case.tensors()[1:])

    def known(value: Tensor, shapes: tuple[tuple[int, int], ...], *points: Tensor) -> Tensor:
        return known_deformable_attention(output, value, shapes, *points)

    results = []
    for function in (known, deformable_attention_reference):
        value, locations, weights = (tensor.requires_grad_() for tensor in case.tensors())
        inputs = value, locations, weights
        out = function(value, case.shapes, locations, weights)
        grads = torch.autograd.grad(out.pow(2).sum(), inputs, create_graph=True)
        results.append(list(torch.autograd.grad(sum(grad.sum() for grad in grads), inputs)))
    assert worst(*results) < 1e-10
