"""The ladder's equation, and the state that its sites hand on: other passes, failures, copies, recomputed blocks."""

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

from vispeft.errors import PlanError
from vispeft.models.layers.activation_checkpointing import run_layer
from vispeft.peft import Adapter, Ladder, LoRA, Plan, count, disabled, inject, train_mode
from vispeft.peft.inject import attached
from vispeft.peft.methods.ladder import LadderDelta, SideState, SideStates

ACTIVATIONS = {"gelu": F.gelu, "relu": F.relu, "silu": F.silu}
ON_BLOCKS = Plan({"blocks.*": Ladder(3)})
# every block has something trained, so that backward recomputes it, with an adapter up to its very end
WITH_LORA = Plan({"blocks.*": Ladder(3), "blocks.*.fc": LoRA(2)})
WITH_ADAPTER = Plan({"blocks.*": (Ladder(3), Adapter(2))})


class Block(nn.Module):
    """A residual map. x: [..., 6]."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.fc = nn.LayerNorm(6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc(self.norm(x)).tanh()


class Encoder(nn.Module):
    """Blocks one after another. run: calls `segment` blocks at once; fails_at: block before which it fails"""

    def __init__(self, num_blocks: int = 4) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block() for _ in range(num_blocks)])
        self.run: Callable[[nn.Module, Tensor], Tensor] = lambda part, x: part(x)
        self.segment = 1
        self.fails_at: int | None = None

    def forward(self, x: Tensor) -> Tensor:
        for start in range(0, len(self.blocks), self.segment):
            if start == self.fails_at:
                raise RuntimeError("half way")
            x = self.run(nn.Sequential(*self.blocks[start : start + self.segment]), x)
        return x


def injected(model: nn.Module, plan: Plan = ON_BLOCKS) -> nn.Module:
    """The model in float64 with deltas none of which is zero."""
    torch.manual_seed(0)
    model.double()
    inject(model, plan)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    train_mode(model)
    return model


def tokens(seed: int = 1, size: int = 2) -> Tensor:
    return torch.randn(size, 5, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ladder_of(model: nn.Module) -> list[LadderDelta]:
    return [item.delta for item in attached(model) if isinstance(item.delta, LadderDelta)]


def states_of(model: nn.Module) -> SideStates:
    """The one object that all sites share."""
    first, *others = [delta.states for delta in ladder_of(model)]
    assert all(other is first for other in others)
    return first


def trained(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def gradients(model: nn.Module, *inputs: Tensor) -> list[Tensor]:
    """Gradients of all that is trained, by one backward pass after a forward pass for each input."""
    losses = [model(x).square().sum() for x in inputs]
    return list(torch.autograd.grad(torch.stack(losses).sum(), trained(model)))


def assert_close(ours: list[Tensor], wanted: list[Tensor]) -> None:
    for mine, theirs in zip(ours, wanted, strict=True):
        torch.testing.assert_close(mine, theirs)


def side_network(deltas: list[LadderDelta], outputs: list[Tensor], activation: str) -> Tensor:
    """`up(h)` of outputs [..., C_i], written out."""
    hidden = torch.zeros(())
    for index, (delta, output) in enumerate(zip(deltas, outputs, strict=True)):
        own = dict(delta.named_parameters())
        down = output.detach() @ own["down_w"].T + own["down_b"]
        if index == 0:
            hidden = down
            continue
        inner = ACTIVATIONS[activation](hidden @ own["mix.down_w"].T + own["mix.down_b"])
        gate = 1 / (1 + torch.exp(-own["gate"]))
        hidden = gate * down + (1 - gate) * (hidden + inner @ own["mix.up_w"].T + own["mix.up_b"])
    return hidden @ own["up_w"].T + own["up_b"]


@pytest.mark.parametrize(
    ("maps", "shape", "dim"),
    [
        ([nn.Linear(6, 8), nn.Linear(8, 4), nn.Linear(4, 6)], (2, 5, 6), -1),
        ([nn.Linear(6, 8), nn.Linear(8, 4), nn.Linear(4, 6)], (2, 3, 5, 6), -1),
        ([nn.Conv2d(6, 8, 1), nn.Conv2d(8, 4, 3, padding=1)], (2, 6, 3, 5), 1),
        ([nn.Linear(6, 6)], (2, 5, 6), -1),
    ],
    ids=["B N C", "B H W C", "B C H W", "one site"],
)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_ladder__is_its_equation(maps: list[nn.Module], shape: tuple[int, ...], dim: int, activation: str) -> None:
    base = nn.Sequential(*copy.deepcopy(maps)).double()
    model = injected(nn.Sequential(*copy.deepcopy(maps)), Plan({"*": Ladder(3, activation)}))
    base.load_state_dict(model.state_dict(), strict=False)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    outputs, y = [], x
    for block in base:
        y = block(y)
        outputs.append(y.movedim(dim, -1))
    wanted = y + side_network(ladder_of(model), outputs, activation).movedim(-1, dim)
    result = model(x)
    torch.testing.assert_close(result, wanted)
    assert result.stride() == y.stride()
    parameters = [x, *trained(model)]
    ours = torch.autograd.grad(result.square().sum(), parameters)
    assert_close(list(ours), list(torch.autograd.grad(wanted.square().sum(), parameters)))


def test_ladder__has_no_gradients_in_the_backbone() -> None:
    model, seen = injected(Encoder()), []
    for block in model.blocks:
        block.fc.register_forward_hook(lambda _module, _args, output: seen.append(output.requires_grad))
    assert model(tokens()).requires_grad
    assert seen == [False] * 4


def test_ladder__counts_its_maps() -> None:
    model = injected(Encoder())
    down, mix, up = 6 * 3 + 3, 2 * (3 * 3 + 3), 3 * 6 + 6
    assert count(model).deltas == {"ladder": 4 * down + 3 * (mix + 1) + up}


def test_ladder__of_other_options_is_another() -> None:
    model = injected(Encoder(), Plan({"blocks.[:2]": Ladder(3), "blocks.[2:]": Ladder(2)}))
    first, second, third, fourth = ladder_of(model)
    assert first.states is second.states
    assert third.states is fourth.states
    assert first.states is not third.states
    assert gradients(model, tokens())


def test_ladder__is_the_same_without_gradients_and_in_eval_mode() -> None:
    model = injected(Encoder())
    wanted = model(tokens()).detach()
    with torch.no_grad():
        assert torch.equal(model(tokens()), wanted)
    with torch.inference_mode():
        assert torch.equal(model(tokens()), wanted)
    assert torch.equal(model.eval()(tokens()), wanted)


def test_ladder__has_the_same_gradients_where_later_blocks_run_without_any() -> None:
    model = injected(Encoder())
    wanted = gradients(model, tokens())

    def run(part: nn.Module, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(states_of(model).running.num_sites in (0, 3)):
            return part(x)

    model.run = run
    assert_close(gradients(model, tokens()), wanted)


def test_ladder__runs_one_pass_after_another_of_other_sizes() -> None:
    model = injected(Encoder())
    inputs = [tokens(1, 2), tokens(2, 3), tokens(3, 1)]
    each = [gradients(model, x) for x in inputs]
    assert_close(gradients(model, *inputs), [torch.stack(parts).sum(0) for parts in zip(*each, strict=True)])


@pytest.mark.parametrize("with_gradients", [True, False])
def test_ladder__starts_again_after_a_pass_that_failed(with_gradients: bool) -> None:
    model = injected(Encoder())
    wanted = gradients(model, tokens())
    model.fails_at = 2
    with torch.set_grad_enabled(with_gradients), pytest.raises(RuntimeError, match="half way"):
        model(tokens(2, 3))
    assert states_of(model).running.num_sites == 2
    model.fails_at = None
    assert_close(gradients(model, tokens()), wanted)
    assert states_of(model).running == SideState()


def test_ladder__starts_again_after_a_pass_without_deltas() -> None:
    model = injected(Encoder())
    wanted = gradients(model, tokens())
    with disabled(model), torch.no_grad():
        model(tokens())
    assert states_of(model).running == SideState()
    assert_close(gradients(model, tokens()), wanted)


@pytest.mark.parametrize("twin_of", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_ladder__of_a_copy_has_its_own_empty_state(twin_of: Callable[[nn.Module], nn.Module]) -> None:
    model = injected(nn.Sequential(*(nn.Linear(6, 6) for _ in range(3))), Plan({"*": Ladder(3)}))
    wanted = gradients(model, tokens())
    model[0](tokens())
    twin = twin_of(model)
    assert states_of(model).running.num_sites == 1
    assert states_of(twin).running == SideState()
    assert_close(gradients(twin, tokens()), wanted)
    with pytest.raises(PlanError, match="number 2 of the ladder's sites, but 0 of them ran before it"):
        twin[1](tokens())


@pytest.mark.parametrize("segment", [1, 2, 3, 4])
@pytest.mark.parametrize("plan", [ON_BLOCKS, WITH_LORA, WITH_ADAPTER], ids=["ladder", "with lora", "with adapter"])
@pytest.mark.parametrize(
    "run",
    [
        lambda part, x: checkpoint(part, x, use_reentrant=False),
        lambda part, x: run_layer(part, x, recompute=True),
    ],
    ids=["checkpoint", "run_layer"],
)
def test_ladder__under_activation_checkpointing(
    run: Callable[[nn.Module, Tensor], Tensor], plan: Plan, segment: int
) -> None:
    model = injected(Encoder(), plan)
    inputs = [tokens(1), tokens(2)]
    wanted, result = gradients(model, *inputs), model(inputs[0])
    model.run, model.segment = run, segment
    # both passes first: a block that is recomputed must find the state of its own pass
    assert torch.equal(model(inputs[0]), result)
    assert_close(gradients(model, *inputs), wanted)
    assert_close(gradients(model, *inputs), wanted)


def test_ladder__of_two_sites_takes_a_recomputed_block_for_one_of_its_pass() -> None:
    model = injected(Encoder(2), WITH_ADAPTER)
    wanted = gradients(model, tokens(1), tokens(2))
    model.run = lambda part, x: checkpoint(part, x, use_reentrant=False)
    first, second = (model(tokens(seed)).square().sum() for seed in (1, 2))
    # after this backward pass the first site of one pass was the last to run
    ours = [torch.autograd.grad(second, trained(model))]
    assert states_of(model).running.num_sites == 1
    ours.append(torch.autograd.grad(first, trained(model)))
    assert_close([one + other for one, other in zip(*ours, strict=True)], wanted)


def test_ladder__refuses_reentrant_checkpointing() -> None:
    model = injected(Encoder())
    model.run = lambda part, x: checkpoint(part, x, use_reentrant=True)
    with pytest.raises(PlanError, match="Activation checkpointing needs `use_reentrant=False`"):
        model(tokens().requires_grad_()).sum().backward()


@pytest.mark.parametrize("recompute", [False, True])
def test_ladder__keeps_nothing_after_a_pass(recompute: bool) -> None:
    model = injected(Encoder())
    refs: list[weakref.ref[Tensor]] = []
    model.run = lambda part, x: run_layer(part, x, recompute=recompute)
    for block in model.blocks:
        block.register_forward_hook(lambda _module, _args, output: refs.append(weakref.ref(output)))
    loss = model(tokens()).sum()
    # backward recomputes the last block alone, for no other has a graph
    assert len(states_of(model)._before) == (1 if recompute else 0)
    loss.backward()
    del loss
    gc.collect()
    assert [ref() for ref in refs] == [None] * len(refs)
    assert states_of(model).running == SideState()
    assert len(states_of(model)._before) == 0


def test_ladder__holds_its_own_state_alone_without_gradients() -> None:
    model = injected(Encoder())
    held: list[SideState] = []
    model.run = lambda part, x: held.append(states_of(model).running) or part(x)
    with torch.no_grad():
        model(tokens())
    assert [state.outputs for state in held] == [()] * 4
    assert [state.hidden.shape for state in held[1:]] == [(2, 5, 3)] * 3
    held.clear()
    model(tokens())
    assert [len(state.outputs) for state in held] == [0, 1, 2, 3]
    assert not any(output.y.requires_grad for output in held[-1].outputs)


class Half(nn.Linear):
    """A linear map of every second token."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x[:, ::2])


def test_ladder__serves_tokens_of_one_stage() -> None:
    model = injected(nn.Sequential(nn.Linear(6, 4), Half(4, 8)), Plan({"*": Ladder(2)}))
    message = r"`1` has outputs of \[2, 3\] positions, but .* before it has \[2, 5\]\. Name the blocks of one stage"
    with pytest.raises(PlanError, match=message):
        model(tokens())
    with torch.no_grad(), pytest.raises(PlanError, match=message):
        model(tokens())


@pytest.mark.parametrize("outputs", ["last", "all"])
def test_ladder__averages_its_state_to_the_maps_of_the_next_stage(outputs: str) -> None:
    stages = [nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 8, 2, stride=2), nn.Conv2d(8, 8, 1)]
    model = injected(nn.Sequential(*stages), Plan({"*": Ladder(2, outputs=outputs)}))
    image = torch.randn(1, 3, 8, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x, hidden = image, torch.zeros(())
    for index, (delta, stage) in enumerate(zip(ladder_of(model), stages, strict=True)):
        own = dict(delta.named_parameters())
        y = F.conv2d(x, stage.weight, stage.bias, stage.stride, stage.padding)
        down = y.detach().movedim(1, -1) @ own["down_w"].T + own["down_b"]
        if index == 1:
            hidden = F.avg_pool2d(hidden.movedim(-1, 1), 2).movedim(1, -1)
        if index > 0:
            inner = F.gelu(hidden @ own["mix.down_w"].T + own["mix.down_b"])
            gate = own["gate"].sigmoid()
            down = gate * down + (1 - gate) * (hidden + inner @ own["mix.up_w"].T + own["mix.up_b"])
        hidden = down
        adds = outputs == "all" or index == 2
        x = y + (hidden @ own["up_w"].T + own["up_b"]).movedim(-1, 1) if adds else y
    ours = model(image)
    torch.testing.assert_close(ours, x)
    parameters = trained(model)
    grads = (list(torch.autograd.grad(result.square().sum(), parameters)) for result in (ours, x))
    assert_close(*grads)
    with torch.no_grad():
        torch.testing.assert_close(model(image), x.detach())
    assert states_of(model).running == SideState()


class Taps(nn.Module):
    """Blocks whose outputs a decoder reads through norms. x: [..., 6]"""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block() for _ in range(3)])
        self.norms = nn.ModuleList([nn.LayerNorm(6) for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        maps = []
        for block, norm in zip(self.blocks, self.norms, strict=True):
            x = block(x)
            maps.append(norm(x))
        return torch.stack(maps)


def test_ladder__adds_to_every_map_of_a_decoder_without_gradients_in_the_backbone() -> None:
    model, seen = injected(Taps(), Plan({"norms.*": Ladder(3, outputs="all")})), []
    for block in model.blocks:
        block.register_forward_hook(lambda _module, _args, output: seen.append(output.requires_grad))
    maps = model(tokens())
    with disabled(model):
        frozen = model(tokens())
    assert all((one - other).abs().max() > 1e-3 for one, other in zip(maps, frozen, strict=True))
    assert seen == [False] * 6
    down, mix, up = 6 * 3 + 3, 2 * (3 * 3 + 3) + 1, 3 * 6 + 6
    assert count(model).deltas == {"ladder": 3 * down + 2 * mix + 3 * up}


def test_ladder__refuses_blocks_that_run_in_another_order() -> None:
    model = injected(nn.Sequential(*(nn.Linear(6, 6) for _ in range(3))), Plan({"*": Ladder(3)}))
    with pytest.raises(PlanError, match="`2` is number 3 of the ladder's sites, but 1 of them ran before it"):
        model[2](model[0](tokens()))


def test_ladder__refuses_outputs_that_are_changed_in_place() -> None:
    model = injected(nn.Sequential(nn.Linear(6, 6), nn.ReLU(inplace=True), nn.Linear(6, 6)), Plan({"0 | 2": Ladder(3)}))
    with pytest.raises(PlanError, match="The output of `0` was changed in place"):
        model(tokens())


def test_ladder__refuses_what_it_cannot_serve() -> None:
    with pytest.raises(PlanError, match="`ladder` serves modules, but this is a parameter"):
        inject(Encoder(), Plan({"blocks.*.fc.weight": Ladder(3)}))
    with pytest.raises(PlanError, match="the plan names this one twice"):
        inject(Encoder(), Plan({"blocks.*": Ladder(3), "blocks.0": Ladder(3)}))
    with pytest.raises(PlanError, match="`width` must be at least 1, but is 0"):
        Ladder(0)
    with pytest.raises(PlanError, match="`outputs` must be one of last, all, but is 'first'"):
        Ladder(3, outputs="first")
    with pytest.raises(PlanError, match="`activation` must be one of gelu, relu, silu, but is 'tanh'"):
        Ladder(3, "tanh")
