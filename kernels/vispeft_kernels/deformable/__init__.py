"""Multi-scale deformable attention (Zhu et al., ICLR 2021, https://arxiv.org/abs/2010.04159)."""

from collections.abc import Sequence

from torch import Tensor

from vispeft_kernels.deformable import configs
from vispeft_kernels.deformable.autograd import deformable_attention_op
from vispeft_kernels.deformable.known_output import KnownOutput
from vispeft_kernels.deformable.reference import deformable_attention_reference
from vispeft_kernels.deformable.samples import Samples
from vispeft_kernels.dispatch import choose
from vispeft_kernels.errors import KernelError

__all__ = ["deformable_attention", "deformable_attention_around", "known_deformable_attention"]


def deformable_attention(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Return the weighted sum of each query's samples of a feature pyramid at a few predicted points (equation 3).

    value: [B, S, heads, dim], the pixels of all levels one after the other, S = sum of H * W.
    spatial_shapes: (H, W) of each level, as Python ints.
    sampling_locations: [B, Q, heads, levels, points, 2], (x, y) from 0 to 1 over a level's area, zero beyond it.
    attention_weights: [B, Q, heads, levels, points].
    Returns [B, Q, heads * dim] in the dtype of `value`; half precisions are computed in float32. Differentiable once on
    the CPU; the reference, which `VISPEFT_KERNELS=reference` chooses, any number of times.
    """
    _check(value, spatial_shapes, sampling_locations, attention_weights)
    if _choose(value, sampling_locations, attention_weights) == "reference":
        return deformable_attention_reference(value, spatial_shapes, sampling_locations, attention_weights)
    out: Tensor = deformable_attention_op(value, _flat(spatial_shapes), sampling_locations, attention_weights, None)
    return out


def deformable_attention_around(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    reference_points: Tensor,
    offsets: Tensor,
    attention_logits: Tensor,
) -> Tensor:
    """Return `deformable_attention` from the outputs of its projections; on a GPU no locations or weights are stored.

    reference_points: [B or 1, Q, 2], points to which offsets are added in pixels of each level, or [B or 1, Q, 4],
    cxcywh boxes, of whose half size an offset of `points` is one; normalised.
    offsets: [B, Q, heads, levels, points, 2]; attention_logits: [B, Q, heads, levels, points], the softmax of which is
    over levels and points. Half precisions are computed in float32.
    """
    samples = Samples(offsets, attention_logits, reference_points)
    _check(value, spatial_shapes, offsets, attention_logits)
    _check_reference_points(reference_points, offsets)
    fits = samples.size <= configs.LARGEST_SAMPLES and not reference_points.requires_grad
    if fits and _choose(value, offsets, attention_logits, reference_points) == "triton":
        flat = _flat(spatial_shapes)
        out: Tensor = deformable_attention_op(value, flat, offsets, attention_logits, reference_points)
        return out
    return deformable_attention(value, spatial_shapes, *samples.resolve(tuple(spatial_shapes)))


def known_deformable_attention(
    output: Tensor,
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Return an output that other code computed, without autograd, as `deformable_attention` of the same inputs.

    Its values are the same to the bit, its gradients those of `deformable_attention`, of which autograd keeps the
    inputs alone. Differentiable twice. The function does not run under `torch.compile`.
    """
    _check(value, spatial_shapes, sampling_locations, attention_weights)
    shapes = tuple((int(height), int(width)) for height, width in spatial_shapes)
    is_reference = _choose(value, sampling_locations, attention_weights) == "reference"
    known: Tensor = KnownOutput.apply(output, value, shapes, sampling_locations, attention_weights, is_reference)
    return known


def _choose(value: Tensor, *points: Tensor) -> str:
    """Choose the implementation: Triton on a GPU, gather-sums on the CPU, the reference elsewhere."""
    dim = value.shape[3]
    limits = f"a head has {dim} channels, more than {configs.LARGEST_DIM}" if dim > configs.LARGEST_DIM else ""
    auto = "torch" if value.device.type == "cpu" else "reference"
    return choose("deformable_attention", auto, (value, *points), limits)


def _flat(shapes: Sequence[tuple[int, int]]) -> list[int]:
    return [size for shape in shapes for size in shape]


def _check_reference_points(reference_points: Tensor, offsets: Tensor) -> None:
    """Refuse reference points that do not fit the offsets."""
    shape = list(reference_points.shape)
    if (
        len(shape) != 3
        or shape[0] not in (1, offsets.shape[0])
        or shape[1] != offsets.shape[1]
        or shape[2] not in (2, 4)
    ):
        raise KernelError(
            f"`reference_points` must be [B or 1, Q, 2 or 4] with B, Q = {list(offsets.shape[:2])}, but has shape "
            f"{shape}."
        )


def _check(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> None:
    """Refuse sizes and dtypes that do not fit, by name."""
    if value.ndim != 4:
        raise KernelError(f"`value` must be [B, S, heads, dim], but has shape {list(value.shape)}.")
    for name, tensor in (
        ("value", value),
        ("sampling_locations", sampling_locations),
        ("attention_weights", attention_weights),
    ):
        if not tensor.is_floating_point():
            raise KernelError(f"`{name}` must be of a floating dtype, but is {tensor.dtype}.")
    if not spatial_shapes or not all(height > 0 and width > 0 for height, width in spatial_shapes):
        raise KernelError(
            f"`spatial_shapes` must be one (H, W) of positive ints per level, but is {list(spatial_shapes)}."
        )
    batch, num_pixels, heads, _ = value.shape
    area = sum(height * width for height, width in spatial_shapes)
    if area != num_pixels:
        raise KernelError(
            f"`value` must have one row per pixel of `spatial_shapes` {list(spatial_shapes)}, {area} in all, "
            f"but has {num_pixels}."
        )
    shape = list(sampling_locations.shape)
    if len(shape) != 6 or [shape[0], *shape[2:4], shape[5]] != [batch, heads, len(spatial_shapes), 2]:
        raise KernelError(
            f"`sampling_locations` must be [B, Q, heads, levels, points, 2] = [{batch}, Q, {heads}, "
            f"{len(spatial_shapes)}, points, 2] to fit `value` and `spatial_shapes`, but has shape {shape}."
        )
    if list(attention_weights.shape) != shape[:5]:
        raise KernelError(
            f"`attention_weights` must be [B, Q, heads, levels, points] = {shape[:5]} like `sampling_locations`, "
            f"but has shape {list(attention_weights.shape)}."
        )
