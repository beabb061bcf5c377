from __future__ import annotations

import pytest
import torch
from torch import nn

from vispeft.training.callbacks.ema import Ema


def two_layers() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[0].requires_grad_(False)
    return model


def test_update__follows_the_formula() -> None:
    model = two_layers()
    ema = Ema(model, decay=0.5)
    expected = model[1].weight.detach().clone()
    for n, decay in enumerate([0.1, 2 / 11, 0.25, 4 / 13, 5 / 14, 0.4, 7 / 16, 8 / 17, 0.5, 0.5, 0.5]):
        with torch.no_grad():
            model[1].weight.add_(n + 1)
        expected = decay * expected + (1 - decay) * model[1].weight.detach()
        ema.update()
    torch.testing.assert_close(ema.state_dict()["1.weight"], expected)


def test_ema__holds_trainable_parameters_only() -> None:
    assert set(Ema(two_layers(), 0.9).state_dict()) == {"1.weight", "1.bias", ""}


def test_swapped_in__restores_the_weights_to_the_bit_even_after_an_error() -> None:
    model = two_layers()
    ema = Ema(model, 0.9)
    with torch.no_grad():
        model[1].weight.mul_(1 / 3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def compare_and_stop() -> None:
        assert torch.equal(model[1].weight, ema.state_dict()["1.weight"])
        assert not torch.equal(model[1].weight, before["1.weight"])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), ema.swapped_in():
        compare_and_stop()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_load_state_dict__continues_as_if_never_stopped() -> None:
    model = two_layers()
    ema = Ema(model, 0.9)
    ema.update()
    state = {name: tensor.clone() for name, tensor in ema.state_dict().items()}
    with torch.no_grad():
        model[1].weight.add_(1)
    other = Ema(model, 0.9)
    other.load_state_dict(state)
    ema.update()
    other.update()
    assert other.num_updates == 2
    assert torch.equal(other.state_dict()["1.weight"], ema.state_dict()["1.weight"])
