"""Every delta takes part in a forward pass."""

import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vispeft.errors import PlanError
from vispeft.peft import VPT, Adapter, LoRA, Plan, check, inject


@pytest.mark.parametrize("site", ["self_attn.out_proj", "reader"])
def test_check__names_a_delta_whose_module_is_never_called(build, images: Tensor, site: str) -> None:
    model = build()
    inject(model, Plan({site: LoRA(2), "conv": LoRA(2)}))
    with pytest.raises(PlanError, match=rf"never run.*`{site}\.lora`\..*such as `{site}\.weight`"):
        check(model, images)


def test_check__takes_tensors_tuples_and_mappings_and_leaves_the_model_as_it_was(build, images: Tensor) -> None:
    model = build().train()
    inject(model, Plan({"conv": LoRA(2)}))
    state = {key: value.clone() for key, value in model.state_dict().items()}
    for example in (images, (images,), {"images": images}):
        check(model, example)
    assert model.training
    assert model.blocks[0].attn.drop.training
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_check__names_the_site_whose_width_was_guessed_wrong(build, images: Tensor) -> None:
    model = build()
    model.blocks[0].late = torch.nn.Linear(8, 5)
    inject(model, Plan({"blocks.0": Adapter(width=2)}))
    with pytest.raises(PlanError, match=r"`blocks\.0\.adapter` does not fit what its site gives"):
        check(model, images)


def test_check__needs_a_plan(build, images: Tensor) -> None:
    with pytest.raises(PlanError, match=r"no plan\. Call `inject"):
        check(build(), images)


class Listed(nn.Module):
    """Takes a list of images, as detectors do, or a mapping of them."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 4)

    def forward(self, images: list[Tensor], scale: float = 1.0) -> Tensor:
        if not isinstance(images, list):
            raise ValueError("images must be a list")
        return torch.stack([self.body(image * scale) for image in images])


class Batched(nn.Module):
    """Takes one mapping."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 4)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.body(batch["pixels"])


def injected(model: nn.Module) -> nn.Module:
    inject(model, Plan({"body": LoRA(2)}))
    return model


@pytest.mark.parametrize("images", [[torch.ones(4)], [torch.ones(4), torch.ones(4)]], ids=["one", "two"])
def test_check__passes_a_list_as_the_one_argument(images: list[Tensor]) -> None:
    model = injected(Listed())
    check(model, images)
    check(model, (images, 2.0))
    check(model, {"images": images, "scale": 2.0})
    check(injected(Batched()), ({"pixels": torch.ones(4)},))


@pytest.mark.parametrize(
    ("make", "example", "message"),
    [
        (Listed, (torch.ones(4),), r"with 1 positional arguments.*but with `check\(model, list\(example\)\)`"),
        (Listed, torch.ones(4), r"with the Tensor as its one argument.*but with `check\(model, \[example\]\)`"),
        (Batched, {"pixels": torch.ones(4)}, r"keyword arguments pixels.*but with `check\(model, \(example,\)\)`"),
        (Batched, {"pixel": torch.ones(4)}, r"keyword arguments pixel: .*batch.*Pass a tuple of arguments"),
    ],
    ids=["tuple for a list", "tensor for a list", "keywords for a mapping", "unknown keyword"],
)
def test_check__says_how_to_pass_an_example_of_another_form(
    make: Callable[[], nn.Module], example: object, message: str
) -> None:
    with pytest.raises(PlanError, match=message):
        check(injected(make()), example)


def test_check__says_that_a_list_of_arguments_must_be_a_tuple(build: Callable[[], nn.Module], images: Tensor) -> None:
    model = build()
    inject(model, Plan({"conv": LoRA(2)}))
    with pytest.raises(PlanError, match=r"with the list as its one argument.*but with `check\(model, tuple\(example\)"):
        check(model, [images])


def test_check__leaves_an_error_of_the_model_itself_as_it_is(build: Callable[[], nn.Module]) -> None:
    model = build()
    inject(model, Plan({"conv": LoRA(2)}))
    with pytest.raises(RuntimeError, match="expected input") as caught:
        check(model, torch.zeros(2, 5, 8, 8))
    assert "fails on this example, without its deltas too" in caught.value.__notes__[0]


def test_check__names_the_deltas_that_ran_where_the_model_fails_behind_them() -> None:
    class Strict(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.body(x)
            if y.abs().max() > 100:
                raise ValueError("too large")
            return y

    model = injected(Strict())
    nn.init.constant_(model.body.lora.b, 1e6)
    with pytest.raises(
        PlanError,
        match=r"without its deltas, but not with them\. Those that ran are `body\.lora`\. ValueError: too large",
    ):
        check(model, torch.ones(4))


@pytest.mark.parametrize(
    "output", [{"y": torch.ones(4).int()}, ((2, "y"), 1), None], ids=["integers", "no tensor", "None"]
)
def test_check__names_a_module_whose_output_no_delta_can_follow(output: object) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> object:
            return output

    model = nn.Sequential(Odd())
    inject(model, Plan({"0": Adapter(width=2)}))
    with pytest.raises(PlanError, match=r"A Odd with a delta must give a tensor of real numbers"):
        check(model, torch.ones(4))


class FixedLength(nn.Module):
    """A block that adds positions for four tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.map(x) + torch.ones(4, 1)


def test_check__names_the_deltas_whose_inputs_a_module_does_not_take() -> None:
    model = nn.Sequential(FixedLength())
    inject(model, Plan({"0": VPT(2), "0.map": LoRA(2)}))
    with pytest.raises(PlanError, match=r"these deltas give their sites: `0\.vpt`\. Name sites that take such inputs"):
        check(model, torch.ones(1, 4, 8))


class Towers(nn.Module):
    """Two maps, of which the first runs without gradients or is detached, and gives losses in train mode if asked."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.first, self.second, self.kind = nn.Linear(4, 4), nn.Linear(4, 4), kind

    def forward(self, x: Tensor) -> object:
        if self.training and self.kind == "targets":
            raise ValueError("targets must be given in train mode")
        with torch.set_grad_enabled(self.kind != "no_grad"):
            y = self.first(x)
        if self.kind == "reentrant":
            return checkpoint(self.second, checkpoint(self.first, x.requires_grad_(), use_reentrant=True))
        if not (self.training and self.kind == "losses"):
            y = y.detach()
        return {"y": self.second(y), "sizes": [3]}


@pytest.mark.parametrize("kind", ["no_grad", "detached"])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("site", ["first", "first.weight"])
def test_check__names_deltas_that_run_without_a_gradient(kind: str, training: bool, site: str) -> None:
    model = Towers(kind)
    inject(model, Plan({f"{site} | second": LoRA(2)}))
    if kind == "no_grad":
        with pytest.raises(PlanError, match=rf"run, but get no gradient.*trained: `{site}\.lora`\. The model runs"):
            check(model, torch.ones(2, 4), training=training)
    else:
        with pytest.warns(UserWarning, match=rf"not be trained: `{site}\.lora`\. Leave them out"):
            check(model, torch.ones(2, 4), training=training)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("kind", ["losses", "reentrant", "targets"])
@pytest.mark.filterwarnings("ignore:.*use_reentrant")
def test_check__takes_deltas_that_get_a_gradient_in_training_alone(kind: str) -> None:
    model = Towers(kind)
    inject(model, Plan({"first | second": LoRA(2)}))
    model.first.lora.b.grad = torch.ones_like(model.first.lora.b)
    check(model, torch.ones(2, 4))
    assert (model.first.lora.b.grad == 1).all()
    assert model.second.lora.b.grad is None


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_check__sees_gradients_in_every_mode_of_the_caller(mode: Callable[[], AbstractContextManager[None]]) -> None:
    model, detached = Towers("losses"), Towers("detached")
    inject(model, Plan({"second": LoRA(2)}))
    inject(detached, Plan({"first": LoRA(2)}))
    x = torch.ones(2, 4)
    with mode():
        check(model, x)
        with pytest.raises(PlanError, match="get no gradient"):
            check(detached, x)


def test_check__keeps_nothing_for_a_backward_pass() -> None:
    kept: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.body(x)
            square = y * y
            kept.append(weakref.ref(y))
            del y
            alive.append(sum(one() is not None for one in kept))
            return square

    model = injected(Net())
    check(model, torch.ones(2, 4))
    assert alive == [0]
