"""ReLU modules before frozen maps."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vispeft.peft import LoRA, Plan, inject, train_mode


class Feedforward(nn.Module):
    def __init__(self, *, inplace: bool = False) -> None:
        super().__init__()
        self.first, self.act, self.second = nn.Linear(4, 64), nn.ReLU(inplace=inplace), nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(self.act(self.first(x)))
        return y


class Checkpointed(nn.Module):
    """A part that keeps its input alone, and runs again in backward."""

    def __init__(self, recompute: bool) -> None:
        super().__init__()
        self.part, self.recompute = Feedforward(), recompute

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = checkpoint(self.part, x, use_reentrant=False) if self.recompute else self.part(x)
        return y


def kept_sizes(model: nn.Module, x: Tensor) -> list[tuple[torch.dtype, int]]:
    own = {parameter.data_ptr() for parameter in model.parameters()}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in own:
            kept[tensor.data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(x)
    return [(tensor.dtype, tensor.numel()) for tensor in kept.values()]


def injected(model: nn.Module, plan: Plan) -> nn.Module:
    inject(model, plan)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.linspace(-0.5, 0.5, parameter.numel()).view_as(parameter))
    train_mode(model)
    return model


FIRST = Plan({"first": LoRA(rank=2)})
SECOND = Plan({"first": LoRA(rank=2), "second": LoRA(rank=2)})
TRAINED = Plan({"first": LoRA(rank=2)}, train=["second"])


@pytest.fixture
def x() -> Tensor:
    return torch.randn(5, 4, generator=torch.Generator().manual_seed(1))


def test_relu__keeps_signs_before_a_frozen_map(x: Tensor) -> None:
    model = injected(Feedforward(), FIRST)
    assert (torch.bool, 5 * 64) in kept_sizes(model, x)
    assert (torch.float32, 5 * 64) not in kept_sizes(model, x)


def test_relu__gives_backward_hooks_the_gradient_of_its_input(x: Tensor) -> None:
    model, seen = injected(Feedforward(), FIRST), []
    model.act.register_full_backward_hook(lambda module, given, of_output: seen.append(given[0]))
    model(x).sum().backward()
    assert [gradient.shape for gradient in seen] == [(5, 64)]


@pytest.mark.parametrize(
    ("build", "plan"),
    [
        (Feedforward, SECOND),
        (Feedforward, TRAINED),
        (lambda: Feedforward(inplace=True), FIRST),
    ],
    ids=["a delta reads it", "a trained map reads it", "in place"],
)
def test_relu__is_torchs_own_elsewhere(build: Callable[[], nn.Module], plan: Plan, x: Tensor) -> None:
    model = injected(build(), plan)
    model(x)  # finds what needs the output
    assert not any(dtype == torch.bool for dtype, _ in kept_sizes(model, x))


def test_relu__is_torchs_own_where_others_observe_it(x: Tensor) -> None:
    model = injected(Feedforward(), FIRST)
    seen: list[Tensor] = []
    model.act.register_forward_hook(lambda *words: seen.append(words[-1]), prepend=True)
    assert not any(dtype == torch.bool for dtype, _ in kept_sizes(model, x))
    assert seen[0].requires_grad


@pytest.mark.parametrize("plan", [FIRST, SECOND, TRAINED])
def test_relu__gives_the_same_outputs_and_gradients(plan: Plan, x: Tensor) -> None:
    model = injected(Feedforward(), plan)
    plain = copy.deepcopy(model)
    plain.act = nn.Sequential(nn.ReLU())  # without our hooks
    results = []
    for each in (model, plain):
        output = each(x)
        output.square().sum().backward()
        results.append([output, *(p.grad for p in each.parameters() if p.requires_grad)])
    for ours, theirs in zip(*results, strict=True):
        assert torch.equal(ours, theirs)


def test_relu__copy_of_a_model_that_ran(x: Tensor) -> None:
    model = injected(Feedforward(), FIRST)
    with torch.no_grad():
        expected = model(x)
    model(x)
    assert torch.equal(copy.deepcopy(model)(x), expected)


def test_relu__keeps_the_same_in_a_pass_that_backward_repeats(x: Tensor) -> None:
    def gradients(*, recompute: bool) -> list[Tensor]:
        torch.manual_seed(0)
        model = injected(Checkpointed(recompute), Plan({"part.first": LoRA(rank=2), "part.second": LoRA(rank=2)}))
        for _ in range(2):
            model(x).square().sum().backward()
        return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]

    plain = gradients(recompute=False)
    assert len(plain) == 4
    torch.testing.assert_close(gradients(recompute=True), plain)
