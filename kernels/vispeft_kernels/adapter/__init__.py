"""The bottleneck adapter: `x + scale * up(act(down(x)))`, and its parallel form on a stream of its own.

Shapes: x [..., in]; y [..., out]; down_w [width, in]; down_b [width]; up_w [out, width]; up_b [out].
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from vispeft_kernels.adapter import autograd, chain, configs, ops, reference, torch_impl, triton_impl
from vispeft_kernels.adapter.autograd import Steps
from vispeft_kernels.adapter.torch_impl import Maps
from vispeft_kernels.dispatch import choose, requested
from vispeft_kernels.errors import KernelError

__all__ = ["ACTIVATIONS", "Maps", "bottleneck", "bottleneck_add", "bottleneck_chain"]

ACTIVATIONS = tuple(reference.ACTIVATIONS)

STEPS: dict[str, Steps] = {"function": torch_impl, "triton": triton_impl}


def bottleneck(
    x: Tensor,
    down_w: Tensor,
    down_b: Tensor,
    up_w: Tensor,
    up_b: Tensor,
    activation: str = "gelu",
    scale: float = 1.0,
) -> Tensor:
    """`x + scale * up(act(down(x)))` (Houlsby et al. 2019, https://arxiv.org/abs/1902.00751); gelu is exact (erf)."""
    return bottleneck_add(x, x, down_w, down_b, up_w, up_b, activation, scale)


def bottleneck_add(
    y: Tensor,
    x: Tensor,
    down_w: Tensor,
    down_b: Tensor,
    up_w: Tensor,
    up_b: Tensor,
    activation: str = "gelu",
    scale: float = 1.0,
) -> Tensor:
    """`y + scale * up(act(down(x)))` (AdaptFormer, https://arxiv.org/abs/2205.13535). Keeps x and down(x), no more."""
    maps = Maps(down_w, down_b, up_w, up_b)
    _check(y, x, maps, activation)
    width = down_w.shape[0]
    limits = f"a bottleneck of {width} is wider than {configs.LARGEST_WIDTH}" if width > configs.LARGEST_WIDTH else ""
    how = choose("adapter", "function", (y, x, *maps), limits)
    if how == "triton" and torch.compiler.is_compiling():
        return ops.bottleneck_add(y, x, maps, activation, scale)
    if how == "reference" or torch.compiler.is_compiling():
        return reference.bottleneck_add(y, x, *maps, activation, scale)
    return autograd.bottleneck_add(y, x, maps, activation, scale, STEPS[how])


def bottleneck_chain(
    x: Tensor,
    down_w: Sequence[Tensor],
    down_b: Sequence[Tensor],
    up_w: Sequence[Tensor],
    up_b: Sequence[Tensor],
    activation: str = "gelu",
    scale: float = 1.0,
) -> Tensor:
    """x through one `bottleneck` after the other, in one pass over it. Keeps x and every down(x), no more.

    Adapters of different widths, one alone, and a mode asked for by name go one by one.
    """
    for maps in zip(down_w, down_b, up_w, up_b, strict=True):
        _check(x, x, Maps(*maps), activation)
    is_uniform = len(down_w) > 1 and len({one.shape for one in down_w}) == 1
    if not is_uniform or requested() != "auto" or torch.compiler.is_compiling():
        for maps in zip(down_w, down_b, up_w, up_b, strict=True):
            x = bottleneck(x, *maps, activation, scale)
        return x
    down = torch.stack(tuple(down_w)), torch.stack(tuple(down_b))
    up = torch.stack(tuple(up_w)), torch.stack(tuple(up_b))
    return chain.bottleneck_chain(x, *down, *up, activation, scale)


def _check(y: Tensor, x: Tensor, maps: Maps, activation: str) -> None:
    """Refuses an unknown activation and tensors that do not fit each other."""
    if activation not in ACTIVATIONS:
        raise KernelError(f"`activation` must be one of {', '.join(ACTIVATIONS)}, but is {activation!r}.")
    width = maps.down_w.shape[0]
    wanted = {
        "down_w": (width, x.shape[-1]),
        "down_b": (width,),
        "up_w": (y.shape[-1], width),
        "up_b": (y.shape[-1],),
    }
    for (name, shape), tensor in zip(wanted.items(), maps, strict=True):
        if tuple(tensor.shape) != shape:
            raise KernelError(f"`{name}` must be {shape}, but is {tuple(tensor.shape)}.")
    if x.shape[:-1] != y.shape[:-1]:
        raise KernelError(f"`x` {tuple(x.shape)} and `y` {tuple(y.shape)} must agree but for their last dimension.")
