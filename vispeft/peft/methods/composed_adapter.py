"""Adapters whose two maps are composed of small factors: the part that LoRand and Compacter share."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor, nn
from vispeft_kernels.adapter import bottleneck_add

from vispeft.peft.methods.base import Delta, Method, reference_tensor, trainable, widths
from vispeft.peft.methods.layout import ChannelDim, laid_out_like


class ComposedAdapter(Delta):
    """`y + up(act(down(y)))` with biases `down_b` [w] and `up_b` [d], zero at the start.

    features: width d of the site's output
    """

    def __init__(self, method: Method, base: nn.Module, width: int, activation: str) -> None:
        super().__init__(method)
        size, like = widths(base), reference_tensor(base)
        self.channel_dim, self.activation, self.features = ChannelDim(size), activation, size.outputs
        self.down_b, self.up_b = trainable(width, like=like), trainable(size.outputs, like=like)

    @abstractmethod
    def weights(self) -> tuple[Tensor, Tensor]:
        """Return the composed weights of `down` [w, d] and `up` [d, w]."""

    def forward(self, x: Tensor, y: Tensor, base: nn.Module | None) -> Tensor:
        """Return y with the adapter's result added. y: [..., d] or [B, d, H, W]."""
        dim = self.channel_dim.of(y)
        stream = y.movedim(dim, -1)
        down, up = self.weights()
        result = bottleneck_add(stream, stream, down, self.down_b, up, self.up_b, self.activation)
        return laid_out_like(y, result.movedim(-1, dim))

    def merged(self, weight: Tensor, bias: Tensor | None) -> None:
        """Return None: an adapter is not linear."""
        return
