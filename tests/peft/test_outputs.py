"""Tensors inside the inputs and outputs of modules."""

from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from vispeft.peft import IA3, Adapter, Plan, check, disabled, inject
from vispeft.peft.outputs import first_features, replaced, tensors_of

Pair = namedtuple("Pair", ["size", "y"])


@dataclass(frozen=True)
class Output:
    """The frozen output of a module."""

    size: int
    y: Tensor


SIZES, Y = torch.tensor([2, 3]), torch.ones(2, 4)
OUTPUTS = {
    "tensor": (lambda y: y, ()),
    "tuple": (lambda y: (y, 3), (0,)),
    "list": (lambda y: [None, y], (1,)),
    "later": (lambda y: (SIZES, None, y), (2,)),
    "nested": (lambda y: ((SIZES, [y]), y), (0, 1, 0)),
    "named tuple": (lambda y: Pair(3, y), ("y",)),
    "dict": (lambda y: {"size": SIZES, "y": y}, ("y",)),
    "ordered": (lambda y: OrderedDict(a=(3,), y=y), ("y",)),
    "dataclass": (lambda y: Output(3, y), ("y",)),
    "dataclass of a tuple": (lambda y: Output(3, (y, y)), ("y", 0)),
}


@pytest.mark.parametrize(("make", "place"), OUTPUTS.values(), ids=OUTPUTS)
def test_replaced__changes_the_first_features_alone(make, place) -> None:
    place = (1,) if place == ("y",) and make is OUTPUTS["named tuple"][0] else place
    output, new = make(Y), torch.zeros(2, 4)
    found = first_features(output)
    assert found is not None
    assert found[0] == place
    assert found[1] is Y
    result = replaced(output, place, new)
    assert type(result) is type(output)
    assert first_features(result)[1] is new
    assert first_features(output)[1] is Y
    others = [tensor for tensor in tensors_of(output) if tensor is not Y]
    assert all(any(tensor is other for other in tensors_of(result)) for tensor in others)


def test_first_features__are_none_where_no_tensor_holds_real_numbers() -> None:
    assert first_features((SIZES, {"a": 3}, object(), "text", Output)) is None


@pytest.mark.parametrize("make", [make for make, _ in OUTPUTS.values()], ids=OUTPUTS)
@pytest.mark.parametrize("by_keyword", [False, True])
def test_inject__serves_modules_with_any_such_inputs_and_outputs(make, by_keyword: bool) -> None:
    class Site(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.map = nn.Linear(4, 4)

        def forward(self, pair: tuple[Tensor, Tensor]) -> object:
            return make(self.map(pair[0]))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.site = Site()

        def forward(self, x: Tensor) -> Tensor:
            pair = (x, SIZES)
            output = self.site(pair=pair) if by_keyword else self.site(pair)
            found = first_features(output)
            assert found is not None
            return found[1]

    model, x = Net(), torch.randn(2, 4)
    before = model(x)
    inject(model, Plan({"site": (IA3(), Adapter(width=2), Adapter(width=2, parallel=True))}))
    check(model, x)
    assert torch.equal(model(x), before)
    nn.init.constant_(model.site.ia3.gain, 2.0)
    torch.testing.assert_close(model(x), 2 * before)
    with disabled(model):
        assert torch.equal(model(x), before)


def test_inject__serves_outputs_of_transformers() -> None:
    outputs = pytest.importorskip("transformers.modeling_outputs")
    output = outputs.BaseModelOutputWithPooling(last_hidden_state=Y, pooler_output=Y + 1)
    result = replaced(output, first_features(output)[0], Y + 2)
    assert type(result) is type(output)
    assert torch.equal(result.last_hidden_state, Y + 2)
    assert torch.equal(result[0], Y + 2)
    assert torch.equal(output.last_hidden_state, Y)


class Numbered(nn.Module):
    """A layer that gets its number before the features."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(4, 4)

    def forward(self, index: int, features: Tensor) -> Tensor:
        return self.map(features)


def test_inject__takes_the_first_features_of_all_inputs_where_the_first_input_is_no_tensor() -> None:
    model = nn.ModuleList([Numbered()])
    inject(model, Plan({"0": Adapter(width=2, parallel=True)}))
    nn.init.ones_(model[0].adapter.get_submodule("0").up_w)
    x = torch.randn(2, 4)
    one = model[0](3, x)
    assert torch.equal(model[0](3, features=x), one)
    assert not torch.equal(one, model[0].map(x))
