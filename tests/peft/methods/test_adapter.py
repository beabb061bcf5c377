from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from vispeft.peft import Adapter
from vispeft.peft.methods.adapter import AdapterDelta


def shaken(method: Adapter) -> AdapterDelta:
    """The adapters of a map from 6 to 6 features, none of them zero."""
    torch.manual_seed(0)
    delta = AdapterDelta(method, nn.Linear(6, 6).double())
    for parameter in delta.parameters():
        nn.init.normal_(parameter, std=0.5)
    return delta


def outcome(delta: AdapterDelta, index: int, x: torch.Tensor) -> torch.Tensor:
    """up(act(down(x))) of one adapter, in plain torch."""
    adapter = delta.get_submodule(str(index))
    hidden = F.gelu(F.linear(x, adapter.down_w, adapter.down_b))
    return F.linear(hidden, adapter.up_w, adapter.up_b)


def test_adapter_delta__a_chain_adds_every_outcome() -> None:
    delta, y = shaken(Adapter(width=3, count=2)), torch.randn(5, 6, dtype=torch.float64)
    first = y + outcome(delta, 0, y)
    torch.testing.assert_close(delta(y, y, None), first + outcome(delta, 1, first))


def test_adapter_delta__the_chain_of_the_published_code_adds_the_last_outcome() -> None:
    delta, y = shaken(Adapter(width=3, count=2, chain="last")), torch.randn(5, 6, dtype=torch.float64)
    first = y + outcome(delta, 0, y)
    torch.testing.assert_close(delta(y, y, None), y + outcome(delta, 1, first))


def test_adapter_delta__one_adapter_is_the_same_in_both_chains() -> None:
    y = torch.randn(5, 6, dtype=torch.float64)
    assert torch.equal(*(shaken(Adapter(width=3, chain=chain))(y, y, None) for chain in ("additive", "last")))


def test_adapter_delta__has_a_trained_factor_for_each_channel() -> None:
    delta, y = shaken(Adapter(width=3, count=2, channel_scale=True, scale=0.5)), torch.randn(5, 6, dtype=torch.float64)
    first = y + 0.5 * delta.get_submodule("0").channel_scale * outcome(delta, 0, y)
    wanted = first + 0.5 * delta.get_submodule("1").channel_scale * outcome(delta, 1, first)
    torch.testing.assert_close(delta(y, y, None), wanted)


def test_adapter_plus__counts_as_the_paper_does_and_starts_as_documented() -> None:
    """Steitz and Roth: 2 d w + w + d of the maps and d factors."""
    delta = AdapterDelta(Adapter(width=8, channel_scale=True, start="normal"), nn.Linear(60, 60))
    own = dict(delta.named_parameters())
    assert sum(parameter.numel() for parameter in own.values()) == 2 * 60 * 8 + 8 + 2 * 60
    assert torch.equal(own["0.channel_scale"], torch.ones(60))
    assert 0.015 < own["0.down_w"].abs().max() <= 0.02
    assert 0.007 < own["0.down_w"].std() < 0.01
    for name in ("0.down_b", "0.up_w", "0.up_b"):
        assert not own[name].any(), name
