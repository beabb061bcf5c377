"""Multi-scale deformable attention (Zhu et al., ICLR 2021, https://arxiv.org/abs/2010.04159)."""

from collections.abc import Sequence

from torch import Tensor

from vispeft_kernels.deformable.ops import deformable_attention_op
from vispeft_kernels.deformable.reference import deformable_attention_reference
from vispeft_kernels.dispatch import choose
from vispeft_kernels.errors import KernelError

__all__ = ["deformable_attention"]

NOT_YET = "it has no triton implementation"


def deformable_attention(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """What each query reads from a feature pyramid at a few points of its own choice.

    value: [B, S, heads, dim], the pixels of all levels one after the other, S = sum of H * W.
    spatial_shapes: (H, W) of each level, as Python ints.
    sampling_locations: [B, Q, heads, levels, points, 2], (x, y) from 0 to 1 over a level's area; zeros lie beyond.
    attention_weights: [B, Q, heads, levels, points].
    Returns [B, Q, heads * dim] in the dtype of `value`; half precisions are computed in float32. Differentiable once on
    the CPU; the reference, which `VISPEFT_KERNELS=reference` chooses, any number of times.
    """
    _check(value, spatial_shapes, sampling_locations, attention_weights)
    auto = "gather" if value.device.type == "cpu" else "reference"
    if choose("deformable_attention", auto, (value,), NOT_YET) == "reference":
        return deformable_attention_reference(value, spatial_shapes, sampling_locations, attention_weights)
    shapes = [size for shape in spatial_shapes for size in shape]
    out: Tensor = deformable_attention_op(value, shapes, sampling_locations, attention_weights)
    return out


def _check(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> None:
    """Every size that does not fit is told by name."""
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
