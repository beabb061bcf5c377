"""Several named adapters on one base."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from vispeft.errors import CheckpointError, PlanError
from vispeft.peft import (
    VPT,
    Adapter,
    DoRA,
    LoRA,
    Plan,
    ScaleShift,
    adapter_per_image,
    adapters,
    check,
    count,
    disabled,
    drop_adapter,
    inject,
    load_adapter,
    merge,
    remove,
    save_adapter,
    set_adapters,
    train_mode,
)

Build = Callable[[], nn.Module]

NIGHT = Plan({"blocks.*.attn.qkv": LoRA(2, parts="qv"), "blocks.*.mlp.fc1": LoRA(2)}, ["head.**"])
RAIN = Plan({"blocks.*.attn.qkv": LoRA(3, alpha=6, parts="qv"), "self_attn.in_proj_weight": LoRA(2)}, ["bn", "head.**"])
SNOW = Plan({"blocks.*.mlp.fc1": [ScaleShift(), DoRA(2)], "blocks.*.attn.proj": Adapter(width=3), "conv": LoRA(2)})
PLANS = {"night": NIGHT, "rain": RAIN, "snow": SNOW}


@torch.no_grad()
def answer(model: nn.Module, images: Tensor) -> Tensor:
    result: Tensor = model(images)
    return result


@pytest.fixture
def images() -> Tensor:
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def trained(build: Build, tmp_path: Path) -> Callable[[str, Plan], Path]:
    """Writes an adapter file with values of its own for each name."""

    def write(name: str, plan: Plan) -> Path:
        model = build()
        inject(model, plan)
        torch.manual_seed(sum(map(ord, name)))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.1 * torch.randn_like(parameter))
            if "bn" in plan.train:
                model.bn.running_mean.add_(0.1)
        save_adapter(model, tmp_path / name, metadata={"weather": name})
        return tmp_path / name

    return write


@pytest.fixture
def files(trained) -> dict[str, Path]:
    return {name: trained(name, plan) for name, plan in PLANS.items()}


@pytest.fixture
def alone(build: Build, files: dict[str, Path], images: Tensor) -> dict[str | None, Tensor]:
    """The outputs of each adapter alone, loaded without a name, and of the base."""
    found: dict[str | None, Tensor] = {None: frozen_answer(build(), images)}
    for name, path in files.items():
        model = build()
        load_adapter(model, path)
        found[name] = frozen_answer(model, images)
    return found


def frozen_answer(model: nn.Module, images: Tensor) -> Tensor:
    """By what is frozen, some processors choose kernels: see test_promises.py."""
    model.requires_grad_(False)
    return answer(model, images)


@pytest.fixture
def model(build: Build, files: dict[str, Path]) -> nn.Module:
    """The base with all three adapters, the last of them active."""
    base = build()
    for name, path in files.items():
        load_adapter(base, path, name=name)
    return base


def test_load_adapter__with_a_name_makes_it_the_active_one(build: Build, files, alone, images: Tensor) -> None:
    model = build()
    for name, path in files.items():
        file = load_adapter(model, path, name=name)
        assert file.metadata == {"weather": name}
        assert torch.equal(answer(model, images), alone[name])
    assert adapters(model) == {"night": 0.0, "rain": 0.0, "snow": 1.0}


def test_set_adapters__switches_to_the_bit(model: nn.Module, alone, images: Tensor) -> None:
    for name in ("night", "snow", "rain", None, "night", "rain", None):
        set_adapters(model, name)
        assert torch.equal(answer(model, images), alone[name]), name


def test_set_adapters__keeps_the_base_keys_and_freezes_everything(build: Build, model: nn.Module) -> None:
    base = build()
    set_adapters(model, None)
    state = model.state_dict()
    assert all(torch.equal(state[key], value) for key, value in base.state_dict().items())
    assert {key.split(".adapters.")[1].split(".")[0] for key in state if key not in base.state_dict()} == PLANS.keys()
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert count(model).trainable == 0
    assert count(model).total == sum(parameter.numel() for parameter in model.parameters())


def test_set_adapters__mixes_updates_of_weights_and_values(build: Build, files, images: Tensor) -> None:
    model, parts = build(), []
    for name in ("night", "rain"):
        load_adapter(model, files[name], name=name)
        single = build()
        load_adapter(single, files[name])
        merge(single)
        parts.append(single.state_dict())
    set_adapters(model, {"night": 0.7, "rain": -0.3})
    mixed = build()
    state = mixed.state_dict()
    for key, value in state.items():
        if value.is_floating_point():
            value += 0.7 * (parts[0][key] - value) - 0.3 * (parts[1][key] - value)
    torch.testing.assert_close(answer(model, images), frozen_answer(mixed, images), rtol=1e-5, atol=1e-5)
    assert adapters(model) == {"night": 0.7, "rain": -0.3}
    before = answer(model, images)
    merge(model)
    torch.testing.assert_close(answer(model, images), before, rtol=1e-5, atol=1e-5)
    assert list(model.state_dict()) == list(build().state_dict())


def test_set_adapters__mixes_outputs_of_any_delta(build: Build, trained, images: Tensor) -> None:
    plans = {"one": Plan({"conv": Adapter(width=3)}), "other": Plan({"conv": [LoRA(2), ScaleShift()]})}
    model, outputs = build(), []
    for name, plan in plans.items():
        load_adapter(model, trained(name, plan), name=name)
        outputs.append(answer(model.conv, images))
    set_adapters(model, None)
    y = answer(model.conv, images)
    set_adapters(model, {"one": 1.5, "other": -0.5})
    expected = y + 1.5 * (outputs[0] - y) - 0.5 * (outputs[1] - y)
    torch.testing.assert_close(answer(model.conv, images), expected, rtol=1e-5, atol=1e-5)


def test_set_adapters__one_with_a_weight_is_between_it_and_the_base(model: nn.Module, images: Tensor) -> None:
    set_adapters(model, {"night": 0.0, "rain": 0.0})
    x = torch.ones(1, 8)
    y, qkv = answer(model.head, x), answer(model.blocks[0].attn.qkv, x)
    set_adapters(model, "night")
    full, full_qkv = answer(model.head, x), answer(model.blocks[0].attn.qkv, x)
    set_adapters(model, {"night": 0.25})
    torch.testing.assert_close(answer(model.head, x), torch.lerp(y, full, 0.25))
    torch.testing.assert_close(answer(model.blocks[0].attn.qkv, x), torch.lerp(qkv, full_qkv, 0.25))


@pytest.mark.parametrize(
    "names",
    [
        ("night", "rain", "snow", None),
        ("rain", "night", "rain", "night"),
        ("night", "night", None, None),
        (None, None, None, None),
    ],
    ids=str,
)
def test_adapter_per_image__equals_separate_passes(model: nn.Module, alone, images: Tensor, names) -> None:
    set_adapters(model, {"night": 0.5, "rain": 0.5})
    before = answer(model, images)
    with adapter_per_image(model, names):
        together = answer(model, images)
    for index, name in enumerate(names):
        torch.testing.assert_close(together[index], alone[name][index], rtol=1e-5, atol=1e-5)
    assert torch.equal(answer(model, images), before)


def test_adapter_per_image__serves_every_method(case, build: Build, trained, images: Tensor) -> None:
    model = build()
    load_adapter(model, trained("case", case.plan), name="case")
    load_adapter(model, trained("night", NIGHT), name="night")
    expected = {}
    for name in ("case", "night"):
        set_adapters(model, name)
        expected[name] = answer(model, images)
    names = ("case", "night", "case", "night")
    plan = case.methods if isinstance(case.methods, tuple) else (case.methods,)
    if any(isinstance(method, VPT) for method in plan):
        with pytest.raises(PlanError, match="adds tokens"), adapter_per_image(model, names):
            pass
        return
    if case.pattern.split(" | ")[-1] == "reader.weight":
        with pytest.raises(PlanError, match="read by another module"), adapter_per_image(model, names):
            answer(model, images)
        return
    with adapter_per_image(model, names):
        together = answer(model, images)
    for index, name in enumerate(names):
        torch.testing.assert_close(together[index], expected[name][index], rtol=1e-5, atol=1e-5)


def test_adapter_per_image__serves_projections_that_attention_reads(build: Build, trained, images: Tensor) -> None:
    model = build()
    load_adapter(
        model, trained("full", Plan({"self_attn.in_proj_weight": LoRA(2)}, ["self_attn.out_proj.**"])), name="full"
    )
    load_adapter(model, trained("delta", Plan({"self_attn.out_proj.weight": LoRA(2)})), name="delta")
    names = ("delta", "full", None, "delta")
    expected = []
    for index, name in enumerate(names):
        set_adapters(model, name)
        expected.append(answer(model, images)[index])
    with adapter_per_image(model, names):
        together = answer(model, images)
    torch.testing.assert_close(together, torch.stack(expected), rtol=1e-5, atol=1e-5)


class Windows(nn.Module):
    """A map of windows, 2 of each image."""

    def __init__(self) -> None:
        super().__init__()
        self.position, self.inner, self.outer = nn.Parameter(torch.ones(6)), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, images: Tensor) -> Tensor:
        windows = (images + self.position).reshape(-1, 3, 6)
        return self.outer(self.inner(windows).flatten(0, 1)).reshape(len(images), -1)


@pytest.mark.parametrize("method", [LoRA(2), Adapter(width=2)], ids=["lora", "adapter"])
def test_adapter_per_image__takes_windows_and_a_parameter_of_the_model_itself(method, tmp_path: Path) -> None:
    def build() -> Windows:
        torch.manual_seed(0)
        return Windows()

    model, images = build(), torch.randn(4, 6, 6)
    for name in ("one", "other"):
        single = build()
        inject(single, Plan({"inner": method, "outer": method}, ["position"]))
        with torch.no_grad():
            for parameter in single.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter))
        save_adapter(single, tmp_path / name)
        load_adapter(model, tmp_path / name, name=name)
    names, expected = ("one", "other", None, "one"), []
    for index, name in enumerate(names):
        set_adapters(model, name)
        expected.append(answer(model, images)[index])
    with adapter_per_image(model, names):
        torch.testing.assert_close(answer(model, images), torch.stack(expected), rtol=1e-5, atol=1e-5)


class QueriesFirst(nn.Module):
    """A map of queries [Q, B, C], with an embedding of positions that all images share."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.position = nn.Linear(6, 6), nn.Linear(1, 6)

    def forward(self, images: Tensor) -> Tensor:
        positions = self.position(torch.ones(images.shape[1], 1))
        return self.inner((images + positions).transpose(0, 1)).sum(0)


def two_adapters(plan: Plan, folder: Path) -> QueriesFirst:
    """A model with the adapters "one" and "other"."""

    def build() -> QueriesFirst:
        torch.manual_seed(0)
        return QueriesFirst().eval()

    model = build()
    for name in ("one", "other"):
        single = build()
        inject(single, plan)
        with torch.no_grad():
            for parameter in single.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter))
        save_adapter(single, folder / name)
        load_adapter(model, folder / name, name=name)
    return model


@pytest.mark.parametrize("num_queries", [3, 4, 8])
@pytest.mark.parametrize("plan", [Plan({"inner": LoRA(2)}), Plan({"inner": Adapter(width=2)}, ["inner"])], ids=str)
def test_adapter_per_image__finds_the_dimension_of_the_images(plan: Plan, num_queries: int, tmp_path: Path) -> None:
    model, images = two_adapters(plan, tmp_path), torch.randn(4, num_queries, 6)
    names, expected = ("one", "other", None, "one"), []
    for index, name in enumerate(names):
        set_adapters(model, name)
        expected.append(answer(model, images)[index])
    with adapter_per_image(model, names):
        torch.testing.assert_close(answer(model, images), torch.stack(expected), rtol=1e-5, atol=1e-5)


def test_adapter_per_image__refuses_rows_that_belong_to_no_image(tmp_path: Path) -> None:
    model = two_adapters(Plan({"position": LoRA(1)}), tmp_path)
    with (
        adapter_per_image(model, ["one", "other"]),
        pytest.raises(PlanError, match=r"`position` has \[8, 1\], in which"),
    ):
        model(torch.randn(2, 8, 6))
    with adapter_per_image(model, ["one", "other"]), pytest.raises(PlanError, match="Call the model itself"):
        model.position(torch.randn(8, 1))
    with adapter_per_image(model, ["one", "one"]):
        model(torch.randn(2, 8, 6))


def test_adapter_per_image__refuses_what_it_cannot_serve(
    model: nn.Module, build: Build, trained, images: Tensor
) -> None:
    with adapter_per_image(model, ["night", None]), pytest.raises(PlanError, match="2 adapters, but the model gets 4"):
        model(images)
    with pytest.raises(PlanError, match="no adapter `nigt`"), adapter_per_image(model, ["nigt"]):
        pass
    with pytest.raises(PlanError, match="inside of `adapter_per_image`"), adapter_per_image(model, ["night"]):
        set_adapters(model, "rain")
    with pytest.raises(PlanError, match="is empty"), adapter_per_image(model, []):
        pass
    full = build()
    load_adapter(full, trained("full", Plan(train=["reader"])), name="full")
    with pytest.raises(PlanError, match="trains `weight` of `reader` in full"), adapter_per_image(full, ["full"] * 4):
        answer(full, images)


def test_adapter_per_image__gives_gradients_to_the_images(model: nn.Module, images: Tensor) -> None:
    names = ("night", "snow", "night", "rain")
    expected = []
    for index, name in enumerate(names):
        set_adapters(model, name)
        image = images[index : index + 1].clone().requires_grad_()
        expected.append(torch.autograd.grad(model(image).square().sum(), image)[0])
    together = images.clone().requires_grad_()
    with adapter_per_image(model, names):
        (gradient,) = torch.autograd.grad(model(together).square().sum(), together)
    torch.testing.assert_close(gradient, torch.cat(expected), rtol=1e-4, atol=1e-4)


def test_drop_adapter__leaves_the_others_and_at_last_the_base(
    model: nn.Module, build: Build, alone, images: Tensor
) -> None:
    set_adapters(model, "night")
    drop_adapter(model, "snow")
    assert adapters(model) == {"night": 1.0, "rain": 0.0}
    assert torch.equal(answer(model, images), alone["night"])
    drop_adapter(model, "night")
    assert torch.equal(answer(model, images), alone[None])
    drop_adapter(model, "rain")
    assert adapters(model) == {}
    state, base = model.state_dict(), build().state_dict()
    assert list(state) == list(base)
    assert all(torch.equal(state[key], value) for key, value in base.items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_save_adapter__writes_one_of_them_as_it_was(
    model: nn.Module, files, alone, images: Tensor, tmp_path: Path
) -> None:
    set_adapters(model, "rain")
    for name, path in files.items():
        save_adapter(model, tmp_path / "again", name=name)
        assert (tmp_path / "again").read_bytes() == path.read_bytes()
    assert torch.equal(answer(model, images), alone["rain"])


def test_remove__keeps_the_active_values_and_takes_the_deltas(
    model: nn.Module, build: Build, alone, images: Tensor
) -> None:
    set_adapters(model, None)
    remove(model)
    assert adapters(model) == {}
    assert torch.equal(frozen_answer(model, images), alone[None])


def test_disabled_check_train_mode_and_copies_know_them(model: nn.Module, alone, images: Tensor) -> None:
    set_adapters(model, "night")
    check(model, images)
    clone = copy.deepcopy(model)
    set_adapters(clone, "snow")
    assert torch.equal(answer(clone, images), alone["snow"])
    assert torch.equal(answer(model, images), alone["night"])
    drop_adapter(clone, "snow")
    set_adapters(clone, "rain")
    assert torch.equal(answer(clone, images), alone["rain"])
    set_adapters(model, "snow")
    with disabled(model):
        assert torch.equal(answer(model, images), alone[None])
    train_mode(model)
    assert torch.equal(answer(model, images), alone["snow"])


def test_copies__have_adapters_and_batches_of_their_own(build: Build, trained, images: Tensor, tmp_path: Path) -> None:
    model = build()
    load_adapter(model, trained("one", Plan({"conv": LoRA(2)}, ["self_attn.**", "head.**"])), name="one")
    load_adapter(model, trained("two", NIGHT), name="two")
    names = ("one", None, "two", "one")
    with adapter_per_image(model, names):
        expected = answer(model, images)
    torch.save(model, tmp_path / "model")
    for clone in (copy.deepcopy(model), torch.load(tmp_path / "model", weights_only=False)):
        drop_adapter(clone, "two")
        with adapter_per_image(clone, ("one", None, None, "one")):
            result = answer(clone, images)
        for index in (0, 1, 3):
            torch.testing.assert_close(result[index], expected[index])
    with adapter_per_image(model, names):
        assert torch.equal(answer(model, images), expected)


def test_adapter_per_image__passes_over_parameters_that_nothing_reads(
    build: Build, tmp_path: Path, images: Tensor
) -> None:
    def with_unused() -> nn.Module:
        model = build()
        model.unused = nn.Embedding(2, 3)
        return model

    for name, pattern in (("unused", "unused"), ("used", "reader")):
        single, model = with_unused(), with_unused()
        inject(single, Plan(train=[pattern]))
        save_adapter(single, tmp_path / name)
        load_adapter(model, tmp_path / name, name=name)
        if name == "unused":
            with adapter_per_image(model, [name, None, None, None]):
                assert torch.equal(answer(model, images), frozen_answer(build(), images))
        else:
            with pytest.raises(PlanError, match="read it without a call"), adapter_per_image(model, [name] * 4):
                answer(model, images)


def test_load_adapter__refuses_and_leaves_the_others(
    model: nn.Module, build: Build, files, alone, images: Tensor
) -> None:
    set_adapters(model, "night")
    with pytest.raises(PlanError, match="has an adapter `rain` already"):
        load_adapter(model, files["rain"], name="rain")
    with pytest.raises(PlanError, match="cannot be the name"):
        load_adapter(model, files["rain"], name="a.b")
    with pytest.raises(PlanError, match=r"named adapters \(night, rain, snow\)"):
        load_adapter(model, files["rain"])
    with pytest.raises(PlanError, match="named adapters"):
        save_adapter(model, files["rain"])
    with pytest.raises(PlanError, match="has a plan already"):
        inject(model, NIGHT)
    other = build()
    with torch.no_grad():
        other.conv.weight.add_(1)
    inject(other, NIGHT)
    save_adapter(other, files["snow"])
    with pytest.raises(CheckpointError, match="fingerprint"):
        load_adapter(model, files["snow"], name="fog")
    assert adapters(model) == {"night": 1.0, "rain": 0.0, "snow": 0.0}
    assert torch.equal(answer(model, images), alone["night"])
    unnamed = build()
    load_adapter(unnamed, files["night"])
    with pytest.raises(PlanError, match="a plan without a name"):
        load_adapter(unnamed, files["rain"], name="rain")
    with pytest.raises(CheckpointError, match="load each into a plain base with a name"):
        load_adapter(unnamed, files["rain"])


def test_set_adapters__refuses_unknown_names_weights_and_prompts(model: nn.Module, build: Build, trained) -> None:
    with pytest.raises(PlanError, match="no adapter `fog`"):
        set_adapters(model, "fog")
    with pytest.raises(PlanError, match="must be finite"):
        set_adapters(model, {"night": float("nan")})
    with pytest.raises(PlanError, match="no named adapters"):
        set_adapters(build(), "night")
    load_adapter(model, trained("tokens", Plan({"blocks.*": VPT(2)})), name="tokens")
    with pytest.raises(PlanError, match=r"adds tokens to the inputs of `blocks\.0`"):
        set_adapters(model, {"tokens": 0.5})


def test_precision__follows_the_model(model: nn.Module, alone, images: Tensor, files, tmp_path: Path) -> None:
    model.to(torch.float64)
    for name in ("rain", "snow"):
        set_adapters(model, name)
        torch.testing.assert_close(answer(model, images.double()), alone[name].double(), rtol=1e-4, atol=1e-4)
    with adapter_per_image(model, ["night", "rain", "snow", None]):
        assert answer(model, images.double()).dtype == torch.float64
    save_adapter(model, tmp_path / "again", name="rain")
    load_adapter(model, tmp_path / "again", name="again")


def test_compile__does_not_compile_again_for_a_switch(build: Build, trained, images: Tensor) -> None:
    model = build()
    for name in ("one", "two", "three", "four"):
        load_adapter(model, trained(name, NIGHT), name=name)
    graphs: list[object] = []

    def backend(graph: torch.fx.GraphModule, _: object) -> object:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(model, backend=backend, fullgraph=True)

    def run() -> int:
        torch.testing.assert_close(answer(compiled, images), answer(model, images), rtol=1e-5, atol=1e-5)
        return len(graphs)

    counts = []
    for name in ("one", "two", "three", "one", "four"):
        set_adapters(model, name)
        counts.append(run())
    assert len(set(counts)) == 1
    counts = []
    for mixture in ({"one": 0.5, "two": 0.5}, {"three": 0.7, "four": -0.2}, {"two": 2.0, "one": 1.0}):
        set_adapters(model, mixture)
        counts.append(run())
    assert len(set(counts)) == 1
    counts = []
    for names in (("one", "two", None, "four"), ("three", "one", None, "two")):
        with adapter_per_image(model, names):
            counts.append(run())
    assert len(set(counts)) == 1
    set_adapters(model, "two")
    assert run() == counts[0]
