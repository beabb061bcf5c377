"""Inputs that backward recomputes: gradients, kept memory, and tensors without attributes."""

import copy
import gc
import pickle
import weakref
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vispeft.models.layers.activation_checkpointing import run_layer
from vispeft.peft import DoRA, LoRA, Plan, ScaleShift, inject, train_mode
from vispeft.peft.inject import attached
from vispeft.peft.methods.recomputed_inputs import RecomputedInputs, is_recomputed

PLAN = Plan({"fc1 | fc2": LoRA(2)})


def unchanged(y: Tensor) -> Tensor:
    return y


class Mlp(nn.Module):
    """A norm, a map, an activation and a map. x: [..., 8]; `between` gets and returns the norm's output."""

    def __init__(self, act: nn.Module | None = None) -> None:
        super().__init__()
        self.norm, self.fc1, self.fc2 = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)
        self.act = nn.GELU() if act is None else act
        self.between: Callable[[Tensor], Tensor] = unchanged

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(self.between(self.norm(x)))))


class Layers(nn.Module):
    """Residual layers under a form of activation checkpointing."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Mlp(), Mlp()])
        self.run: Callable[[nn.Module, Tensor], Tensor] = lambda block, x: block(x)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + self.run(block, x)
        return x


RUNS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "reentrant": lambda block, x: checkpoint(block, x, use_reentrant=True),
    "not reentrant": lambda block, x: checkpoint(block, x, use_reentrant=False),
    "run_layer": lambda block, x: run_layer(block, x, recompute=True),
}


def injected(model: nn.Module, plan: Plan = PLAN) -> nn.Module:
    """The model in float64 with deltas none of which is zero."""
    torch.manual_seed(0)
    model.double()
    inject(model, plan)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    train_mode(model)
    return model


def table_of(model: nn.Module) -> RecomputedInputs:
    """The one table that all deltas of the model share."""
    tables = {id(item.delta.recomputed_inputs): item.delta.recomputed_inputs for item in attached(model)}
    assert len(tables) == 1
    return next(iter(tables.values()))


def inputs() -> Tensor:
    return torch.randn(5, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()


def gradients(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Gradients of the input and of all that is trained, by a backward pass through the whole graph."""
    model.zero_grad()
    x.grad = None
    model(x).square().sum().backward()
    return [x.grad, *(parameter.grad for parameter in model.parameters() if parameter.requires_grad)]


def without_recomputing(model: nn.Module, monkeypatch: pytest.MonkeyPatch, x: Tensor) -> list[Tensor]:
    with monkeypatch.context() as patch:
        patch.setattr(RecomputedInputs, "recompute_of", lambda table, x: None)
        return gradients(model, x)


def kept_bytes(model: nn.Module, x: Tensor) -> int:
    """Bytes of distinct storages that autograd keeps, parameters excluded. No tensor that it keeps has attributes."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        assert isinstance(tensor, nn.Parameter) or not vars(tensor)
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = model(x)
    del result
    return sum(kept.values())


def assert_same(ours: list[Tensor], wanted: list[Tensor]) -> None:
    assert len(ours) == len(wanted)
    for mine, theirs in zip(ours, wanted, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("kind", [LoRA, DoRA])
@pytest.mark.parametrize("act", [nn.GELU(), nn.SiLU(), nn.GELU("tanh")], ids=repr)
def test_recomputed_inputs__give_the_gradients_of_kept_ones_to_the_bit(
    kind: type[LoRA], act: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = injected(Mlp(act), Plan({"fc1 | fc2": kind(2)}))
    wanted = without_recomputing(model, monkeypatch, inputs())
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(gradients(model, inputs()), wanted, strict=True))


def test_recomputed_inputs__are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    model = injected(Mlp())
    ours = kept_bytes(model, inputs())
    monkeypatch.setattr(RecomputedInputs, "recompute_of", lambda table, x: None)
    assert kept_bytes(model, inputs()) - ours == 5 * (8 + 16) * 8


def test_recomputed_inputs__end_with_the_tensors() -> None:
    model = injected(Mlp())
    found: list[int] = []
    model.fc2.register_forward_hook(lambda *_: found.append(len(table_of(model))))
    for _ in range(3):
        loss = model(inputs()).sum()
        loss.backward()
        assert found[-1] > 0
        del loss
        gc.collect()
        assert len(table_of(model)) == 0


def test_recomputed_inputs__end_with_the_norm_s_output_and_keep_nothing_alive() -> None:
    model = injected(Mlp())
    x = inputs().exp()
    y = model.norm(x)
    refs = weakref.ref(x), weakref.ref(y)
    (_, source) = table_of(model).recompute_of(y)
    assert source.grad_fn is None
    assert source.data_ptr() == x.data_ptr()
    del y, x, source, _
    # without a pass of the garbage collector
    assert [ref() for ref in refs] == [None, None]
    assert len(table_of(model)) == 0


def test_recomputed_inputs__leave_tensors_without_attributes() -> None:
    model, x = injected(Mlp()), inputs()
    seen: list[Tensor] = [x]
    for module in model.modules():
        module.register_forward_hook(lambda _, args, output: seen.extend([args[0], output]))
    model(x).sum().backward()
    assert len(seen) > 8
    assert not [vars(tensor) for tensor in seen if vars(tensor)]


def test_recomputed_inputs__are_not_taken_for_an_output_that_was_written_to(monkeypatch: pytest.MonkeyPatch) -> None:
    model = injected(Mlp())
    model.between = lambda y: y.add_(1)
    assert_same(gradients(model, inputs()), without_recomputing(model, monkeypatch, inputs()))


def test_recomputed_inputs__are_not_taken_from_an_input_that_was_written_to() -> None:
    model, x = injected(Mlp()), inputs()
    source = x.detach().clone().requires_grad_()

    def change(y: Tensor) -> Tensor:
        with torch.no_grad():
            source.exp_()
        return y

    model.between = change
    # of `a` alone, for the gradient of the norm needs the input as it was
    (ours,) = torch.autograd.grad(model(source).square().sum(), [model.fc1.lora.a])
    model.between = unchanged
    torch.testing.assert_close(ours, torch.autograd.grad(model(x).square().sum(), [model.fc1.lora.a])[0])


@pytest.mark.parametrize("prepend", [False, True])
@pytest.mark.parametrize("early", [False, True])
def test_recomputed_inputs__do_not_depend_on_the_order_of_hooks(
    early: bool, prepend: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Mlp()

    def add() -> None:
        model.norm.register_forward_hook(lambda module, args, output: output * 2, prepend=prepend)

    if early:
        add()
    injected(model)
    if not early:
        add()
    assert_same(gradients(model, inputs()), without_recomputing(model, monkeypatch, inputs()))


def test_recomputed_inputs__are_recorded_beside_an_earlier_hook_that_changes_nothing() -> None:
    wanted = kept_bytes(injected(Mlp()), inputs())
    model = Mlp()
    model.norm.register_forward_hook(lambda *_: None)
    assert kept_bytes(injected(model), inputs()) == wanted


def test_recomputed_inputs__include_what_a_delta_does_to_the_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    model = injected(Mlp(), Plan({"norm": ScaleShift(), "fc1 | fc2": LoRA(2)}))
    assert_same(gradients(model, inputs()), without_recomputing(model, monkeypatch, inputs()))


def test_recomputed_inputs__are_not_taken_where_forward_was_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    model = injected(Mlp())
    forward = model.act.forward
    model.act.forward = lambda x: forward(x) * 2
    assert_same(gradients(model, inputs()), without_recomputing(model, monkeypatch, inputs()))


def test_recomputed_inputs__of_a_map_that_is_called_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.fc1, self.act = nn.LayerNorm(8), nn.Linear(8, 8), nn.GELU()

        def forward(self, x: Tensor) -> Tensor:
            return self.fc1(self.act(self.fc1(self.norm(x))))

    model = injected(Twice(), Plan({"fc1": LoRA(2)}))
    wanted = without_recomputing(model, monkeypatch, inputs())
    assert_same(gradients(model, inputs()), wanted)
    weight = model.fc1.weight + model.fc1.lora.b @ model.fc1.lora.a
    x = inputs()
    hidden = F.gelu(F.linear(model.norm(x), weight, model.fc1.bias))
    explicit = F.linear(hidden, weight, model.fc1.bias).square().sum()
    assert_same(wanted, list(torch.autograd.grad(explicit, [x, model.fc1.lora.a, model.fc1.lora.b])))


def test_recomputed_inputs__with_a_norm_under_no_grad(monkeypatch: pytest.MonkeyPatch) -> None:
    model = injected(Mlp())

    def between(y: Tensor) -> Tensor:
        with torch.no_grad():
            shift = model.fc2(model.act(model.fc1(model.norm(y))))
        return y + shift

    model.between = between
    assert_same(gradients(model, inputs()), without_recomputing(model, monkeypatch, inputs()))
    with torch.no_grad():
        y = model.norm(inputs())
    assert table_of(model).recompute_of(y) is None
    assert len(table_of(model)) == 0


@pytest.mark.parametrize("twin_of", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_recomputed_inputs__of_a_copy_are_its_own(twin_of: Callable[[nn.Module], nn.Module]) -> None:
    model = injected(Mlp())
    y = model.norm(inputs())
    twin = twin_of(model)
    assert table_of(twin) is not table_of(model)
    assert (len(table_of(twin)), len(table_of(model))) == (0, 1)
    assert table_of(twin).recompute_of(y) is None
    wanted, kept = gradients(model, inputs()), kept_bytes(model, inputs())
    with torch.no_grad():
        model.norm.weight.zero_()
    assert_same(gradients(twin, inputs()), wanted)
    assert kept_bytes(twin, inputs()) == kept


@pytest.mark.parametrize("name", RUNS)
def test_recomputed_inputs__under_activation_checkpointing(name: str) -> None:
    model = injected(Layers(), Plan({"blocks.*.fc1 | blocks.*.fc2": LoRA(2)}))
    wanted, plain = gradients(model, inputs()), kept_bytes(model, inputs())
    model.run = RUNS[name]
    assert_same(gradients(model, inputs()), wanted)
    # each block keeps its input alone
    assert kept_bytes(model, inputs()) <= min(plain, 2 * 5 * 8 * 8)
    gc.collect()
    assert len(table_of(model)) == 0


@pytest.mark.parametrize(
    ("module", "wanted"),
    [
        (nn.LayerNorm(4), True),
        (nn.LayerNorm((2, 4)), False),
        (nn.GELU(), True),
        (nn.SiLU(), True),
        (nn.SiLU(inplace=True), False),
        (nn.ReLU(), False),
    ],
    ids=repr,
)
def test_is_recomputed__names_rowwise_modules_that_keep_their_input(module: nn.Module, wanted: bool) -> None:
    assert is_recomputed(module) == wanted
