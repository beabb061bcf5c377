"""Deltas start from the values that are published with their method."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vispeft.peft import AdaLoRA, Adapter, Compacter, Convpass, LoRand, Mona, Rein, RepAdapter, inject
from vispeft.peft.inject import attached
from vispeft.peft.methods.changed_start import StartedLoRA

# factors that are uniform at the start, where these are not A or down alone
UNIFORM = {"loha": ("a1", "a2", "b1"), "lokr": ("a", "b"), "fact": ("u", "s")}


def mona_start(own: dict[str, Tensor]) -> None:
    """Assert that `up` and the LayerNorm's bias are zero, s1 is 1e-6, and maps are uniform as torch's own layers."""
    for name, value in {"up_w": 0, "up_b": 0, "norm_b": 0, "norm_w": 1, "norm_scale": 1e-6, "input_scale": 1}.items():
        assert torch.equal(own[name], torch.full_like(own[name], value)), name
    for name in ("down", "conv3", "conv5", "conv7", "project"):
        bound = own[f"{name}_w"][0].numel() ** -0.5
        assert 0.6 * bound < own[f"{name}_w"].abs().max() <= bound, name
        assert 0 < own[f"{name}_b"].abs().max() <= bound, name


def test_delta__takes_the_published_start(formula_case, build: Callable[[], nn.Module]) -> None:
    """B, up, m and offsets are zero, gains one, A and down uniform up to `1 / sqrt(inputs)`, biases of down zero.

    Of VeRA d is constant; of AdaLoRA A and B are normal and e is zero; of LoHa all but B2 and of LoKr all but C are
    uniform as A.
    With a changed start, A and B are those of the buffers, which have tests of their own.
    In Convpass, the convolution is the identity and down Xavier-uniform. Mona has a start of its own. Those of
    Adapter+, RepAdapter, LoRand, Compacter and Rein are tested with the method.
    """
    torch.manual_seed(3)
    model = build()
    inject(model, formula_case.plan)
    for item in attached(model):
        if isinstance(item.delta.method, RepAdapter | LoRand | Compacter | Rein):
            continue
        if isinstance(item.delta.method, Adapter) and item.delta.method.channel_scale:
            continue
        if isinstance(item.delta.method, Mona):
            mona_start(dict(item.delta.named_parameters()))
            continue
        for name, parameter in item.delta.named_parameters():
            kind = name.rpartition(".")[2]
            if isinstance(item.delta, StartedLoRA):
                assert torch.equal(parameter, item.delta.get_buffer(f"{kind}_start"))
            elif kind in ("core", "p"):
                assert parameter.abs().min() > 0
            elif kind in "ab" and isinstance(item.delta.method, AdaLoRA):
                assert 0.005 < parameter.std() < 0.04
            elif kind in UNIFORM.get(item.delta.method.name, ("a", "down_w")):
                bound = parameter[0].numel() ** -0.5
                if isinstance(item.delta.method, Convpass):
                    bound = (6 / sum(parameter.shape)) ** 0.5
                assert 0.6 * bound < parameter.abs().max() <= bound
            elif kind == "conv_w":
                assert torch.equal(F.conv2d(planes := torch.rand(1, 3, 4, 5), parameter, padding=1), planes)
            else:
                start = item.delta.method.start if kind == "scale_d" else 1.0 if kind == "gain" else 0.0
                assert torch.equal(parameter, torch.full_like(parameter, start)), name
