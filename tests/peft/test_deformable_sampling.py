"""Deformable attention of transformers' models under a plan."""

import copy
import pickle
from collections.abc import Callable
from importlib import import_module

import pytest
import torch
from torch import Tensor, nn

from vispeft.peft import LoRA, Plan, deformable_sampling, inject, remove, train_mode
from vispeft.peft.sampling_trial import is_attention, is_sampler

pytest.importorskip("transformers", reason="the models of transformers are needed")

SHAPES = [(3, 4), (2, 2)]
DIM, HEADS, POINTS, QUERIES = 8, 2, 2, 5
ATTENTIONS = {
    "mask2former": "Mask2FormerPixelDecoderEncoderMultiscaleDeformableAttention",
    "oneformer": "OneFormerPixelDecoderEncoderMultiscaleDeformableAttention",
}
SAMPLERS = [
    "deformable_detr",
    "grounding_dino",
    "lw_detr",
    "mm_grounding_dino",
    "omdet_turbo",
    "pp_doclayout_v2",
    "pp_doclayout_v3",
    "pp_doclayout_v4",
    "rf_detr",
    "rt_detr",
]


class Layer(nn.Module):
    """An attention of transformers with a map before it, which trains."""

    def __init__(self, attention: nn.Module, size: int = 2) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(DIM, DIM)
        self.attention = attention
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.3)
        self.size = size

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mask = torch.zeros(x.shape[:2], dtype=torch.bool)
        mask[:, 3] = True
        reference = torch.linspace(0.1, 0.9, QUERIES * 2 * self.size).view(1, QUERIES, 2, self.size)
        y = self.first(x)
        names = self.attention.forward.__code__.co_varnames
        given = {"spatial_shapes": torch.tensor(SHAPES), "spatial_shapes_list": SHAPES}
        output, weights = self.attention(
            hidden_states=y[:, :QUERIES],
            attention_mask=mask,
            encoder_hidden_states=y,
            reference_points=reference.expand(len(x), -1, -1, -1),
            **{name: value for name, value in given.items() if name in names},
        )
        return output, weights


def modeling(family: str) -> object:
    return import_module(f"transformers.models.{family}.modeling_{family}")


def mask2former(size: int = 2) -> Layer:
    return Layer(getattr(modeling("mask2former"), ATTENTIONS["mask2former"])(DIM, HEADS, len(SHAPES), POINTS), size)


def oneformer() -> Layer:
    return Layer(getattr(modeling("oneformer"), ATTENTIONS["oneformer"])(DIM, HEADS, len(SHAPES), POINTS))


def deformable_detr() -> Layer:
    config = import_module("transformers").DeformableDetrConfig(d_model=DIM, num_feature_levels=len(SHAPES))
    attention = modeling("deformable_detr").DeformableDetrMultiscaleDeformableAttention  # type: ignore[attr-defined]
    return Layer(attention(config, HEADS, POINTS))


PLAN = Plan({"attention.value_proj | attention.sampling_offsets | attention.output_proj": LoRA(rank=2)}, ["first"])


def injected(model: nn.Module) -> nn.Module:
    inject(model, PLAN)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.linspace(-0.3, 0.3, parameter.numel()).view_as(parameter))
    train_mode(model)
    return model


def results(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Return outputs and gradients of a loss in which the attention weights count."""
    model.zero_grad()
    output, weights = model(x)
    (output.square().sum() + weights.square().sum()).backward()
    grads = [parameter.grad for parameter in model.parameters() if parameter.requires_grad]
    return [output, weights, *(grad for grad in grads if grad is not None)]


def kept_bytes(model: nn.Module, x: Tensor) -> int:
    own = {parameter.data_ptr() for parameter in model.parameters()}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in own:
            kept[tensor.data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(x)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 16, DIM, generator=torch.Generator().manual_seed(1))


BUILDERS = pytest.mark.parametrize(
    "build",
    [mask2former, lambda: mask2former(4), oneformer, deformable_detr],
    ids=["m2f", "boxes", "oneformer", "detr"],
)


@pytest.mark.parametrize("family", SAMPLERS)
def test_trial__samplers_of_transformers(family: str) -> None:
    assert is_sampler(modeling(family).MultiScaleDeformableAttention())  # type: ignore[attr-defined]


@pytest.mark.parametrize("build", [mask2former, oneformer])
def test_trial__attentions_of_transformers(build: Callable[[], Layer]) -> None:
    assert is_attention(build().attention)


def test_trial__leaves_another_formula_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    module = modeling("mask2former")
    sample = module.multi_scale_deformable_attention  # type: ignore[attr-defined]
    monkeypatch.setattr(module, "multi_scale_deformable_attention", lambda *words: sample(*words) * 1.1)
    assert not is_attention(mask2former().attention)


@BUILDERS
def test_sampling__same_outputs_and_gradients(
    build: Callable[[], Layer], x: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = results(injected(build()), x)
    monkeypatch.setenv("VISPEFT_KERNELS", "reference")
    theirs = results(injected(build()), x)
    assert len(ours) == len(theirs)
    for index, (our, their) in enumerate(zip(ours, theirs, strict=True)):
        assert torch.equal(our, their) if index < 2 else torch.allclose(our, their, rtol=1e-4, atol=1e-5)


@BUILDERS
def test_sampling__keeps_less(build: Callable[[], Layer], x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = kept_bytes(injected(build()), x)
    monkeypatch.setenv("VISPEFT_KERNELS", "reference")
    assert ours < 0.8 * kept_bytes(injected(build()), x)


@BUILDERS
def test_sampling__copies_and_removal(build: Callable[[], Layer], x: Tensor) -> None:
    model = build()
    before = model(x)[0]
    injected(model)
    wanted = results(model, x)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        for our, their in zip(results(other, x), wanted, strict=True):
            assert torch.equal(our, their)
        assert kept_bytes(other, x) == kept_bytes(model, x)
    plain = copy.deepcopy(build())
    inject(plain, PLAN)
    remove(plain)
    assert torch.equal(plain(x)[0], before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in plain.modules())


@pytest.mark.parametrize("place", ["attention.value_proj", "attention.attn"])
def test_sampling__hooks_of_others_see_the_graph(place: str, x: Tensor) -> None:
    model = injected(mask2former() if place.endswith("proj") else deformable_detr())
    seen: list[Tensor] = []
    model.get_submodule(place).register_forward_hook(lambda module, args, output: seen.append(output))
    model(x)
    assert seen[0].requires_grad


def test_sampling__a_failed_call_leaves_nothing_behind(x: Tensor) -> None:
    model = injected(mask2former())
    wanted = results(model, x)
    with pytest.raises(ValueError, match="align the spatial shapes"):
        model(x[:, :7])
    for our, their in zip(results(model, x), wanted, strict=True):
        assert torch.equal(our, their)


def test_sampling__checkpointing(x: Tensor) -> None:
    model = injected(mask2former())
    wanted = results(model, x)
    model.zero_grad()
    output, weights = torch.utils.checkpoint.checkpoint(model, x, use_reentrant=False)
    (output.square().sum() + weights.square().sum()).backward()
    grads = [p.grad for p in model.parameters() if p.requires_grad and p.grad is not None]
    for our, their in zip(grads, wanted[2:], strict=True):
        assert torch.equal(our, their)


def test_sampling__a_compiled_projection_keeps_its_graph(x: Tensor) -> None:
    model = injected(mask2former())
    wanted = results(model, x)
    model.get_submodule("attention.value_proj").compile(backend="eager")
    for our, their in zip(results(model, x), wanted, strict=True):
        assert torch.allclose(our, their, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("build", [mask2former, deformable_detr])
def test_sampling__autocast(build: Callable[[], Layer], x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = injected(build())
    monkeypatch.setattr(deformable_sampling, "requested", lambda: "reference")
    theirs = injected(build())
    with torch.autocast("cpu", torch.bfloat16):
        assert kept_bytes(ours, x) < kept_bytes(theirs, x)
        for index, (our, their) in enumerate(zip(results(ours, x), results(theirs, x), strict=True)):
            assert torch.equal(our, their) if index < 2 else torch.allclose(our, their, rtol=0.05, atol=0.02)
