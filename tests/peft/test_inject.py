"""Injection under everything else that torch does with a model, and its errors."""

from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vispeft.errors import PlanError
from vispeft.peft import IA3, Adapter, DoRA, LoRA, Method, Plan, ScaleShift, inject, merge, remove, train_mode
from vispeft.peft.inject import attached

Build = Callable[[], nn.Module]
Shake = Callable[[nn.Module], None]

MIXED = Plan(
    {
        "blocks.*.attn.qkv": LoRA(2, parts="qv"),
        "blocks.*.attn.proj": Adapter(width=3, count=2),
        "blocks.*.mlp.fc2": [LoRA(2), ScaleShift()],
        "blocks.0.mlp.fc1": IA3(),
        "blocks.1.mlp.fc1": DoRA(2),
        "grouped.weight": DoRA(2),
        "conv": LoRA(2),
        "reader.weight": LoRA(2),
    },
    ["head"],
)


def gradients(loss: Tensor, model: nn.Module) -> list[Tensor]:
    return list(torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad]))


def test_inject__compiles_without_a_graph_break(build: Build, images: Tensor, shake: Shake) -> None:
    model = build()
    inject(model, MIXED)
    shake(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(images), model(images))
    ours = gradients(compiled(images).square().sum(), model)
    for mine, theirs in zip(ours, gradients(model(images).square().sum(), model), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_inject__exports(build: Build, images: Tensor, shake: Shake) -> None:
    model = build()
    inject(model, MIXED)
    shake(model)
    program = torch.export.export(model, (images,))
    torch.testing.assert_close(program.module()(images), model(images))


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_inject__has_the_same_gradients_under_checkpointing(
    use_reentrant: bool, build: Build, images: Tensor, shake: Shake
) -> None:
    model = build()
    inject(model, Plan({**MIXED.deltas, "blocks.*.mlp.fc1": LoRA(2, dropout=0.5)}, ["head"]))
    shake(model)
    train_mode(model)
    torch.manual_seed(3)
    plain = gradients(model(images).square().sum(), model)
    block = model.blocks[1]
    forward = block.forward
    block.forward = lambda x: checkpoint(forward, x, use_reentrant=use_reentrant)
    torch.manual_seed(3)
    model(images).square().sum().backward()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter, wanted in zip(trained, plain, strict=True):
        torch.testing.assert_close(parameter.grad, wanted)


def test_inject__a_shared_module_gets_one_delta(images: Tensor) -> None:
    shared = nn.Linear(8, 8)
    model = nn.Sequential(nn.Linear(8, 8), shared, nn.ReLU(inplace=True), shared)
    inject(model, Plan({"1 | 3": LoRA(2)}))
    assert [item.key for item in attached(model)] == ["1.lora"]
    nn.init.normal_(shared.lora.b)
    x = torch.randn(3, 8, requires_grad=True)
    ours = torch.autograd.grad(model(x).sum(), (x, shared.lora.a, shared.lora.b))
    effective = shared.weight + shared.lora.b @ shared.lora.a

    def plain(x: Tensor) -> Tensor:
        return F.linear(F.linear(model[0](x), effective, shared.bias).relu(), effective, shared.bias)

    wanted = torch.autograd.grad(plain(x).sum(), (x, shared.lora.a, shared.lora.b))
    for mine, theirs in zip(ours, wanted, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_inject__a_bias_and_an_adapted_weight_train_together(build: Build, images: Tensor, shake: Shake) -> None:
    model = build().double()
    inject(model, Plan({"blocks.0.mlp.fc1": LoRA(2)}, ["blocks.0.mlp.fc1.bias"]))
    shake(model)
    map_ = model.blocks[0].mlp.fc1
    x = torch.randn(3, 8, dtype=torch.float64)
    ours = torch.autograd.grad(map_(x).square().sum(), (map_.bias, map_.lora.a))
    explicit = F.linear(x, map_.weight + map_.lora.b @ map_.lora.a, map_.bias).square().sum()
    for mine, theirs in zip(ours, torch.autograd.grad(explicit, (map_.bias, map_.lora.a)), strict=True):
        torch.testing.assert_close(mine, theirs)


def kept_mb(model: nn.Module, images: Tensor) -> int:
    """Bytes of distinct storages kept for backward, parameters excluded."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = model(images)
    del result
    return sum(kept.values())


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("kind", [LoRA, DoRA])
def test_inject__low_rank_methods_keep_no_more_for_backward_than_an_input_gradient_does(
    kind: type[LoRA], dropout: float, build: Build
) -> None:
    """Behind norms and activations, x is recomputed from what they keep; only rank-sized tensors are added."""
    images = torch.randn(4, 3, 16, 16)
    base, model = build(), build()
    base.requires_grad_(False)
    inject(model, Plan({"blocks.*.mlp.fc1 | blocks.*.mlp.fc2 | blocks.*.attn.qkv": kind(1, dropout=dropout)}))
    train_mode(model)
    floor = kept_mb(base, images.clone().requires_grad_())
    rows = 4 * 9 * 9
    # of the two blocks' three maps with 48 features in all: a gain and its slope in m
    gains = 2 * 48 * 2 if kind is DoRA else 0
    assert kept_mb(model, images.clone().requires_grad_()) <= floor + (6 * rows + gains) * 4


def test_inject__hooks_of_others_get_the_output_after_the_deltas_unless_they_are_put_before_them(
    build: Build, images: Tensor, shake: Shake
) -> None:
    model = build()
    earlier: list[Tensor] = []
    before: list[Tensor] = []
    model.head.register_forward_hook(lambda module, args, output: earlier.append(output))
    inject(model, Plan({"head": LoRA(2)}))
    shake(model)
    output = model(images)
    assert torch.equal(earlier[0], output)
    model.head.register_forward_hook(lambda module, args, output: before.append(output), prepend=True)
    output = model(images)
    assert torch.equal(earlier[1], output)
    assert not torch.equal(before[0], output)


def test_inject__under_autocast_has_close_gradients_in_full_precision(
    build: Build, images: Tensor, shake: Shake
) -> None:
    model = build()
    inject(model, MIXED)
    shake(model)
    wanted = gradients(model(images).square().sum(), model)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(images).float().square().sum()
    for mine, theirs in zip(gradients(loss, model), wanted, strict=True):
        assert mine.dtype == torch.float32
        assert float((mine - theirs).norm()) <= 0.1 * float(theirs.norm()) + 1e-3


def test_inject__deltas_of_a_half_precision_base_are_trained_in_float32(build: Build, images: Tensor) -> None:
    model = build().bfloat16()
    before = model(images.bfloat16())
    inject(model, MIXED)
    assert all(parameter.dtype == torch.float32 for item in attached(model) for parameter in item.delta.parameters())
    assert torch.equal(model(images.bfloat16()), before)
    model(images.bfloat16()).sum().backward()


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (Plan({"blocks.*.attn.drop": LoRA(2)}), r"`blocks\.0\.attn\.drop`: `lora` serves linear maps, convolutions"),
        (Plan({"head": LoRA(2, parts="q")}), "three equal parts, but this one has 4"),
        (Plan({"blocks": Adapter(width=2)}), r"ModuleList runs its children.*`blocks\.1`"),
        (Plan({"act": Adapter(width=2)}), "no linear map, convolution or norm"),
        (Plan({"conv": Adapter(width=2, parallel=True)}), "keeps its map's size"),
        (Plan({"head": Adapter(reduction=8)}), "`reduction` must be at most the site's width 4"),
        (Plan({"self_attn.in_proj_weight": Adapter(width=2)}), "Name the module whose output"),
        (Plan({"self_attn.in_proj_weight": LoRA(2, dropout=0.1)}), "`dropout` must be 0 on a parameter"),
        (Plan({"self_attn.in_proj_bias": LoRA(2)}), r"this one is \[24\]"),
        (Plan({"reader.weight": LoRA(2)}, ["reader"]), "trained in full as well"),
    ],
    ids=lambda value: None,
)
def test_inject__refuses_by_name_and_changes_nothing(build: Build, plan: Plan, message: str) -> None:
    model = build()
    with pytest.raises(PlanError, match=message):
        inject(model, Plan({"conv": LoRA(2), **plan.deltas}, plan.train))
    assert list(model.state_dict()) == list(build().state_dict())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_inject__is_not_done_twice(build: Build) -> None:
    model = build()
    inject(model, MIXED)
    with pytest.raises(PlanError, match=r"a plan already. Call `remove` or `merge`"):
        inject(model, MIXED)
    remove(model)
    inject(model, MIXED)


@pytest.mark.parametrize("function", [remove, merge])
def test_remove_and_merge__need_a_plan(function: Callable[[nn.Module], None], build: Build) -> None:
    with pytest.raises(PlanError, match="no plan"):
        function(build())


@pytest.mark.parametrize("method", [LoRA(2), IA3(), Adapter(width=2)], ids=["lora", "ia3", "adapter"])
def test_inject__refuses_a_lazy_module_and_says_what_to_do(method: Method) -> None:
    model = nn.Sequential(nn.LazyLinear(8))
    with pytest.raises(PlanError, match=r"`0\.weight` has no shape yet\. Run the model once"):
        inject(model, Plan({"0": method}))
    model(torch.zeros(1, 4))
    inject(model, Plan({"0": method}))


@pytest.mark.parametrize("kind", [tuple, list, namedtuple("Pair", "y z")._make], ids=["tuple", "list", "named tuple"])
def test_inject__keeps_the_type_of_several_outputs(kind: Callable[[tuple[Tensor, int]], object]) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> object:
            return kind((self.fc(x), 7))

    model = nn.Sequential(Two())
    before = model(torch.ones(4))
    inject(model, Plan({"0": ScaleShift()}))
    nn.init.zeros_(model[0].scale_shift.gain)
    after = model(torch.ones(4))
    assert type(after) is type(before)
    assert not after[0].any()
    assert after[1] == 7


def test_inject__works_with_a_forward_that_another_library_has_put_in_its_place(shake: Shake) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(4, 4)
    linear.forward = lambda x: F.linear(x, 2 * linear.weight, linear.bias)
    model = nn.Sequential(nn.Linear(4, 4), linear)
    inject(model, Plan({"*": LoRA(2)}))
    shake(model)
    x = torch.randn(3, 4)
    lora = model[1].lora
    hidden = model[0](x)
    wanted = F.linear(hidden, 2 * linear.weight, linear.bias) + hidden @ lora.a.T @ lora.b.T
    torch.testing.assert_close(model(x), wanted)
    for mine, theirs in zip(gradients(model(x).sum(), model), gradients(wanted.sum(), model), strict=True):
        torch.testing.assert_close(mine, theirs)


class Indexed(nn.Module):
    """A linear map whose outputs are chosen by whole numbers, and a complex filter."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.order = nn.Parameter(torch.arange(16).view(4, 4), requires_grad=False)
        self.filter = nn.Parameter(torch.ones(4, 4, dtype=torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)[:, self.order[0] % 4]


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (Plan({"linear": LoRA(2)}, ["**"]), "`order` holds int64 values, which cannot be trained"),
        (Plan({"linear": LoRA(2), "order": LoRA(2)}), "`order` at `order`: This parameter holds int64 values"),
        (Plan({"linear": LoRA(2), "filter": LoRA(2)}), "`filter` at `filter`: This parameter holds complex64 values"),
    ],
)
def test_inject__refuses_parameters_that_are_no_real_numbers_and_changes_nothing(plan: Plan, message: str) -> None:
    model = Indexed()
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    with pytest.raises(PlanError, match=message):
        inject(model, plan)
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == before


def test_inject__serves_a_model_that_holds_whole_and_complex_numbers(shake: Shake) -> None:
    model = Indexed()
    inject(model, Plan({"linear": LoRA(2)}, ["filter"]))
    shake(model)
    x = torch.randn(3, 4)
    lora = model.linear.get_submodule("lora")
    weight = model.linear.weight + lora.get_parameter("b") @ lora.get_parameter("a")
    torch.testing.assert_close(model(x), F.linear(x, weight, model.linear.bias))


def test_inject__refuses_a_model_with_a_part_that_has_a_plan(build: Build, images: Tensor) -> None:
    model = build()
    inject(model.get_submodule("blocks.0"), Plan({"attn.qkv": LoRA(2)}))
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    with pytest.raises(PlanError, match=r"`blocks\.0`, a part of the model, has a plan already"):
        inject(model, Plan({"conv": LoRA(2)}))
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == trainable


def test_inject__refuses_a_part_of_a_model_that_has_a_plan(build: Build) -> None:
    model = build()
    inject(model, Plan({"blocks.0.attn.qkv": LoRA(2)}))
    with pytest.raises(PlanError, match=r"a part of another model, whose plan attached `attn\.qkv\.lora`"):
        inject(model.get_submodule("blocks.0"), Plan({"mlp.fc1": LoRA(2)}))


def test_inject__names_the_whole_class_of_a_module_that_is_called_as_one_it_serves() -> None:
    # as torch calls its quantised maps
    model = nn.Sequential(type("Linear", (nn.Module,), {"__module__": "quantised.modules"})())
    with pytest.raises(PlanError, match=r"but this is a quantised\.modules\.Linear"):
        inject(model, Plan({"0": LoRA(2)}))


def test_inject__puts_deltas_into_the_mode_of_the_model(build: Build, images: Tensor) -> None:
    model = build()
    inject(model, Plan({"blocks.*.mlp.fc1": LoRA(2, dropout=0.5)}))
    with torch.no_grad():
        for item in attached(model):
            item.delta.b.normal_()
        assert torch.equal(model(images), model(images))
    remove(model)
    inject(model.train(), Plan({"blocks.*.mlp.fc1": LoRA(2)}))
    assert all(item.delta.training for item in attached(model))


def test_save_pretrained__of_an_injected_model_of_transformers_opens_as_the_base(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    model = transformers.ViTModel(transformers.ViTConfig(image_size=16, patch_size=8, **sizes)).eval()
    images = torch.randn(1, 3, 16, 16)
    before = model(images).last_hidden_state
    inject(model, Plan({"**.fc1 | layernorm": (ScaleShift(), Adapter(width=2))}))
    model.save_pretrained(tmp_path)
    after = transformers.ViTModel.from_pretrained(tmp_path).eval()(images).last_hidden_state
    torch.testing.assert_close(after, before)
