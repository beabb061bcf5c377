"""Places of the entries of FourierFT."""

import torch
from torch import Tensor, nn

from vispeft.peft import FourierFT, Plan, inject
from vispeft.peft.methods.fourier import Places


def places(seed: int) -> Tensor:
    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 4))
    inject(model, Plan({"*": FourierFT(5, seed=seed)}))
    found: Tensor = model[0].fourierft.update.places.get_buffer("places_4x6")
    return found


def test_fourierft__draws_the_places_by_its_seed_alone() -> None:
    first = places(3)
    assert torch.equal(first, places(3))
    assert not torch.equal(first, places(4))
    assert len(first.unique()) == 5


def test_places__leave_the_global_generator_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    Places().of(9, 9, FourierFT(5))
    assert torch.equal(torch.rand(1), expected)
