"""The dimension of the channels where a module's maps do not tell it."""

import copy

import pytest
import timm
import torch
from torch import nn

from vispeft.errors import PlanError
from vispeft.peft import Adapter, Convpass, Ladder, Method, Mona, Plan, ScaleShift, check, inject
from vispeft.peft.methods.base import widths
from vispeft.peft.methods.layout import ChannelDim


class Mixed(nn.Module):
    """A convolution, then a linear map over channels last, of 4 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(4, 4, 1), nn.Linear(4, 4)


def test_channel_dim__of_a_map_is_known() -> None:
    assert ChannelDim(widths(nn.Conv2d(3, 4, 1))).of(torch.zeros(1, 4, 4, 4)) == 1
    assert ChannelDim(widths(nn.Linear(3, 4))).of(torch.zeros(1, 4, 4, 4)) == -1


def test_channel_dim__is_that_of_the_maps_inside_where_it_is_the_usual_one() -> None:
    conv, linear = (widths(nn.Sequential(part)) for part in (nn.Conv2d(3, 4, 1), nn.Linear(3, 4)))
    assert ChannelDim(conv).of(torch.zeros(1, 4, 4, 4)) == 1
    assert ChannelDim(linear).of(torch.zeros(1, 4, 4)) == -1
    assert not ChannelDim(linear).is_known(torch.zeros(1, 4, 4, 4))
    assert not ChannelDim(conv).is_known(torch.zeros(1, 4, 4))


def test_channel_dim__of_a_mixed_module_is_decided_by_the_first_output_that_tells_it() -> None:
    first, last = ChannelDim(widths(Mixed())), ChannelDim(widths(Mixed()))
    assert first.of_maps is None
    assert first.of(torch.zeros(1, 4, 5, 6)) == 1
    assert last.of(torch.zeros(1, 5, 6, 4)) == -1
    square = torch.zeros(1, 4, 4, 4)
    assert (first.of(square), last.of(square)) == (1, -1)
    assert (first.of_maps, last.of_maps) == (1, -1)
    assert copy.deepcopy(first).of(square) == 1
    assert ChannelDim(widths(Mixed())).of(torch.zeros(1, 9, 4)) == -1
    with pytest.raises(PlanError, match=r"\[1, 4, 4, 4\] does not tell which dimension holds the 4 channels"):
        ChannelDim(widths(Mixed())).of(square)


@pytest.mark.parametrize("method", [Adapter(width=4), ScaleShift(), Convpass(width=2), Ladder(width=4), Mona(width=2)])
def test_methods__change_the_channels_of_convnext_blocks(method: Method) -> None:
    torch.manual_seed(0)
    model = timm.create_model(
        "convnext_atto", pretrained=False, depths=(1, 1, 1, 1), dims=(8, 12, 16, 20), use_grn=False, ls_init_value=1.0
    )
    images = torch.randn(1, 3, 64, 96)
    model.eval()
    before = model(images)
    inject(model, Plan({"stages.1.blocks.0": method}))
    check(model, images)
    assert torch.equal(model(images), before)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    assert not torch.allclose(model(images), before)
