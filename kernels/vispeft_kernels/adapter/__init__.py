"""The bottleneck adapter: `x + scale * up(act(down(x)))`, and its parallel form, added to another stream y.

Shapes: x [..., in]; y [..., out]; down_w [width, in]; down_b [width]; up_w [out, width]; up_b [out]. Tensors that do
not fit each other and unknown activations raise `KernelError`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from vispeft_kernels.adapter import autograd, chain, configs, reference
from vispeft_kernels.adapter.options import AdapterOptions, Maps
from vispeft_kernels.dispatch import choose, requested
from vispeft_kernels.errors import KernelError

__all__ = ["ACTIVATIONS", "Maps", "bottleneck", "bottleneck_add", "bottleneck_chain"]

ACTIVATIONS = tuple(reference.ACTIVATIONS)


def bottleneck(
    x: Tensor, down_w: Tensor, down_b: Tensor, up_w: Tensor, up_b: Tensor, activation: str = "gelu", scale: float = 1.0
) -> Tensor:
    """Return `x + scale * up(act(down(x)))` (Houlsby et al. 2019, https://arxiv.org/abs/1902.00751); gelu is exact."""
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
    """Return `y + scale * up(act(down(x)))` (AdaptFormer, https://arxiv.org/abs/2205.13535).

    Keeps only x and down(x) for the backward pass.
    """
    return _add(y, x, Maps(down_w, down_b, up_w, up_b), AdapterOptions(activation, scale))


def bottleneck_chain(
    x: Tensor,
    down_w: Sequence[Tensor],
    down_b: Sequence[Tensor],
    up_w: Sequence[Tensor],
    up_b: Sequence[Tensor],
    activation: str = "gelu",
    scale: float = 1.0,
) -> Tensor:
    """Apply one `bottleneck` after the other, in one pass over x. Keeps only x and each down(x) for the backward pass.

    Adapters of different widths, a single adapter, and all adapters in a mode other than `auto` are applied one by one.
    """
    options = AdapterOptions(activation, scale)
    each = [Maps(*maps) for maps in zip(down_w, down_b, up_w, up_b, strict=True)]
    for maps in each:
        _check(x, x, maps, activation)
    is_uniform = len(each) > 1 and len({one.shape for one in down_w}) == 1
    if not is_uniform or requested() != "auto" or torch.compiler.is_compiling():
        for maps in each:
            x = _add(x, x, maps, options)
        return x
    stacked = Maps(*(torch.stack(tuple(one)) for one in (down_w, down_b, up_w, up_b)))
    return chain.bottleneck_chain(x, stacked, options)


def _add(y: Tensor, x: Tensor, maps: Maps, options: AdapterOptions) -> Tensor:
    """Return `bottleneck_add` by the fastest implementation; in a compiled graph by Triton's or the plain formula."""
    _check(y, x, maps, options.activation)
    width, largest = maps.down_w.shape[0], configs.LARGEST_WIDTH
    implementation = choose(
        "adapter", "torch", (y, x, *maps), f"a bottleneck of {width} is wider than {largest}" if width > largest else ""
    )
    if implementation == "reference" or (implementation == "torch" and torch.compiler.is_compiling()):
        return reference.bottleneck_add(y, x, maps, options)
    return autograd.bottleneck_add(y, x, maps, options, implementation)


def _check(y: Tensor, x: Tensor, maps: Maps, activation: str) -> None:
    """Refuse an unknown activation and tensors that do not fit each other."""
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
        raise KernelError(f"`x` {tuple(x.shape)} and `y` {tuple(y.shape)} must agree in all dimensions but the last.")
