"""Height and width of token sequences, from the maps that convolutions and LayerNorms of the model gave last."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import vispeft as vp
from vispeft.errors import PlanError
from vispeft.peft import inject, remove
from vispeft.peft.inject import attached
from vispeft.peft.methods.map_sizes import Grid, MapSizes, SiteSizes


@dataclass(frozen=True)
class Probe(vp.Method):
    """`y + offset * column` of each token, 0 for prefix tokens; records the grid of each call."""

    name: ClassVar[str] = "probe"

    def for_module(self, module: nn.Module, context: vp.Context) -> vp.Delta:
        return ProbeDelta(self, context)

    def for_parameter(self, parameter: Tensor, context: vp.Context) -> vp.WeightDelta:
        raise PlanError("`probe` serves modules.")


class ProbeDelta(vp.Delta):
    def __init__(self, method: Probe, context: vp.Context) -> None:
        super().__init__(method)
        self.sizes = context.map_sizes()
        self.offset = nn.Parameter(torch.zeros(1))
        self.grids: list[Grid] = []

    def forward(self, x: Tensor, y: Tensor, base: nn.Module | None) -> Tensor:
        grid = self.sizes.grid_of(x)
        self.grids.append(grid)
        places = torch.cat(
            [torch.zeros(grid.num_prefix), torch.arange(grid.height * grid.width) % grid.width]  # column numbers
        )
        return y + self.offset * places[:, None]

    def merged(self, weight: Tensor, bias: Tensor | None) -> None:
        return None


class Tokens(nn.Module):
    """Patches of 4 pixels, prefix tokens before them, and one linear map. images: [B, 3, H, W]."""

    def __init__(self, num_prefix: int = 0, *, has_checkpoint: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patches = nn.Conv2d(3, 6, 4, stride=4)
        self.prefix = nn.Parameter(torch.rand(1, num_prefix, 6))
        self.map = nn.Linear(6, 6)
        self.has_checkpoint = has_checkpoint

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).mT
        x = torch.cat([self.prefix.expand(len(x), -1, -1), x], 1)
        return checkpoint(self.map, x, use_reentrant=False) if self.has_checkpoint else self.map(x)


class Stages(nn.Module):
    """Tokens by a convolution, then those of a map of half the size, by another convolution or as Swin makes them."""

    def __init__(self, *, merges: bool) -> None:
        super().__init__()
        self.first, self.map1 = nn.Conv2d(3, 6, 2, stride=2), nn.Linear(6, 6)
        self.second: nn.Module = nn.LayerNorm(6) if merges else nn.Conv2d(6, 6, 2, stride=2)
        self.map2 = nn.Linear(6, 6)
        self.merges = merges

    def forward(self, images: Tensor) -> Tensor:
        x = self.first(images)  # [B, 6, H, W]
        _, _, height, width = x.shape
        x = self.map1(x.flatten(2).mT).mT.unflatten(2, (height, width))
        if self.merges:
            x = self.second(x[:, :, ::2, ::2].permute(0, 2, 3, 1)).flatten(1, 2)
        else:
            x = self.second(x).flatten(2).mT
        return self.map2(x)


def probed(model: nn.Module, sites: str = "map", offset: float = 0.5) -> nn.Module:
    inject(model, vp.Plan({sites: Probe()}))
    with torch.no_grad():
        for item in attached(model):
            item.delta.get_parameter("offset").fill_(offset)
    return model


def grids(model: nn.Module) -> list[list[Grid]]:
    """The grids of each delta's calls, in the model's order."""
    return [item.delta.grids for item in attached(model) if isinstance(item.delta, ProbeDelta)]


def images(height: int, width: int) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("num_prefix", [0, 1, 5, 16])
def test_grid_of__counts_prefix_tokens_of_any_image_size(num_prefix: int) -> None:
    model = probed(Tokens(num_prefix))
    for size in ((20, 36), (36, 20), (24, 24)):
        model(images(*size))
    assert grids(model) == [[Grid(num_prefix, 5, 9), Grid(num_prefix, 9, 5), Grid(num_prefix, 6, 6)]]


@pytest.mark.parametrize("merges", [False, True], ids=["convolution", "norm of a channels-last map"])
def test_grid_of__follows_stages(merges: bool) -> None:
    model = probed(Stages(merges=merges), "map1 | map2")
    for _ in range(2):
        model(images(12, 20))
    assert grids(model) == [2 * [Grid(0, 6, 10)], 2 * [Grid(0, 3, 5)]]


def recorded(*maps: tuple[int, tuple[int, ...]]) -> SiteSizes:
    """Sizes at a site after modules that gave these shapes, with the dimension of their channels."""
    sizes = MapSizes()
    for channel_dim, shape in maps:
        sizes.new(channel_dim=channel_dim, position=0).record(nn.Identity(), (), torch.empty(shape))
    return sizes.at(nn.Identity())


@pytest.mark.parametrize("num_prefix", [0, 2])
def test_apply_to_map__gives_rows_of_tokens_as_a_map_and_prefix_tokens_apart(num_prefix: int) -> None:
    tokens = torch.arange(2 * (num_prefix + 12) * 3).view(2, -1, 3)
    seen = []

    def reversed_rows(maps: Tensor) -> Tensor:
        seen.append(maps)
        return maps.flip(2)

    result = recorded((1, (2, 5, 3, 4))).apply_to_map(tokens, reversed_rows, lambda prefix: -prefix)
    rows = tokens[:, num_prefix:].unflatten(1, (3, 4))
    assert torch.equal(seen[0], rows.permute(0, 3, 1, 2))
    assert torch.equal(result, torch.cat([-tokens[:, :num_prefix], rows.flip(1).flatten(1, 2)], 1))


def test_apply_to_map__needs_no_size_for_a_map() -> None:
    maps = torch.rand(2, 3, 4, 5)  # [B, H, W, C]
    result = recorded().apply_to_map(maps, lambda channels_first: channels_first.flip(2), lambda prefix: prefix)
    assert torch.equal(result, maps.flip(1))


def test_grid_of__takes_the_latest_of_equal_sizes() -> None:
    sizes = MapSizes()
    wide, high = (sizes.new(channel_dim=1, position=0) for _ in range(2))
    site = sizes.at(nn.Identity())
    for size, shape, wanted in (
        (wide, (1, 4, 2, 6), Grid(0, 2, 6)),
        (high, (1, 4, 6, 2), Grid(0, 6, 2)),
        (wide, (1, 4, 2, 6), Grid(0, 2, 6)),
    ):
        size.record(nn.Identity(), (), torch.empty(shape))
        assert site.grid_of(torch.empty(1, 12, 4)) == wanted


def test_grid_of__ignores_outputs_that_are_no_maps() -> None:
    sizes = recorded((1, (1, 4, 3, 5)), (-1, (1, 15, 1)), (-1, (1, 1, 15, 4)), (-1, (1, 4)))
    assert sizes.grid_of(torch.empty(1, 15, 4)) == Grid(0, 3, 5)


@pytest.mark.parametrize("length", [14, 32, 49], ids=["too few", "more than 16 prefix tokens", "no map"])
def test_grid_of__refuses_tokens_without_a_map(length: int) -> None:
    sizes = recorded((1, (1, 4, 3, 5)))
    with pytest.raises(PlanError, match=f"A sequence of {length} tokens has no known height and width: no convolution"):
        sizes.grid_of(torch.empty(1, length, 4))


def test_grid_of__refuses_more_prefix_tokens_than_positions() -> None:
    sizes = recorded((1, (1, 4, 2, 2)))
    with pytest.raises(PlanError, match="8 tokens"):
        sizes.grid_of(torch.empty(1, 8, 4))
    assert sizes.grid_of(torch.empty(1, 7, 4)) == Grid(3, 2, 2)


def test_grid_of__ignores_modules_behind_the_site() -> None:
    sizes = MapSizes()
    site = sizes.at(nn.Identity())
    site.end = 4
    for position, shape in ((3, (1, 4, 2, 6)), (5, (1, 4, 6, 2))):
        sizes.new(channel_dim=1, position=position).record(nn.Identity(), (), torch.empty(shape))
    assert site.grid_of(torch.empty(1, 12, 4)) == Grid(0, 2, 6)


def test_deepcopy__records_for_the_copy_alone() -> None:
    model = probed(Tokens(1))
    model(images(20, 36))
    twin = copy.deepcopy(model)
    twin(images(36, 20))
    # the same number of tokens: the model's own size must still be that of its own images
    (item,) = attached(model)
    assert item.delta.sizes.grid_of(torch.empty(2, 46, 6)) == Grid(1, 5, 9)
    assert grids(twin)[0][-1] == Grid(1, 9, 5)
    remove(model)
    twin(images(20, 36))
    assert grids(twin)[0][-1] == Grid(1, 5, 9)


def test_activation_checkpointing__recomputes_with_the_same_grid() -> None:
    gradients = []
    for has_checkpoint in (False, True):
        model = probed(Tokens(1, has_checkpoint=has_checkpoint))
        for size in ((20, 36), (36, 20)):
            model(images(*size)).square().sum().backward()
        gradients.append(attached(model)[0].delta.get_parameter("offset").grad)
        calls = [Grid(1, 5, 9), Grid(1, 9, 5)]
        assert grids(model)[0] == ([grid for grid in calls for _ in range(2)] if has_checkpoint else calls)
    torch.testing.assert_close(*gradients)


def test_compile__gives_the_same_result_at_every_size() -> None:
    model = Tokens(1)
    inject(model, vp.Plan({"map": vp.Convpass(width=3)}))
    with torch.no_grad():
        attached(model)[0].delta.get_parameter("up_w").fill_(0.1)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for size in ((20, 36), (36, 20), (24, 24), (20, 36)):
        torch.testing.assert_close(compiled(images(*size)), model(images(*size)))


def test_inject__records_only_where_a_method_asks() -> None:
    model = Tokens()
    inject(model, vp.Plan({"map": vp.Adapter(width=2)}))
    assert not model.patches._forward_hooks
    remove(model)
    probed(model)
    assert len(model.patches._forward_hooks) == 1
    remove(model)
    assert not model.patches._forward_hooks
