"""A network with places that the peft library finds by name, and some that it cannot replace."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

Build = Callable[[], nn.Module]


class Weights(nn.Module):
    """Two matrices that no map owns, and a map. x: [B, 4]."""

    def __init__(self) -> None:
        super().__init__()
        self.p, self.q = (nn.Parameter(torch.randn(4, 4)) for _ in range(2))
        self.inner = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x @ self.p.t()) @ self.q.t()


class Listed(nn.Module):
    """Maps that the forward pass takes from a list of its own, as transformers' Mask2Former does."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = [nn.Linear(4, 4), nn.Linear(4, 4)]
        for index, layer in enumerate(self.layers):
            self.add_module(str(index), layer)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class Model(nn.Module):
    """The network of the methods' tests with heads of equal names, an embedding and grouped convolutions."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.tokens = nn.Embedding(7, 4)
        self.weights = Weights()
        self.aux = nn.ModuleDict({"head": nn.Linear(4, 4)})
        self.head = nn.Linear(4, 4)
        self.listed = Listed()
        self.plain = nn.Conv2d(3, 6, 3, padding=1)
        self.grouped = nn.Conv2d(6, 4, 3, padding=1, groups=2)
        self.scale = nn.Parameter(torch.rand(4))

    def forward(self, images: Tensor) -> Tensor:
        x = self.net(images) + self.tokens(torch.tensor([1, 2]))
        x = self.head(self.weights(x)) + self.aux["head"](x) + self.listed(x)
        return self.scale * x + self.grouped(self.plain(images)).mean((2, 3))


@pytest.fixture
def build(build: Build) -> Build:
    """Gives the same model at every call, without the dilation that the library's LoRA forgets."""

    def new() -> nn.Module:
        net = build()
        net.conv.dilation, net.conv.padding = (1, 1), (1, 1)
        return Model(net).eval()

    return new
