"""Several named adapters on one base."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from vispeft.errors import CheckpointError, PlanError
from vispeft.peft import (
    IA3,
    VPT,
    Adapter,
    DoRA,
    LoRA,
    Method,
    Plan,
    RepAdapter,
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

# the plan of the adapter "night" of conftest.py
NIGHT = Plan({"blocks.*.attn.qkv": LoRA(2, parts="qv"), "blocks.*.mlp.fc1": LoRA(2)}, ["head.**"])


Build = Callable[[], nn.Module]


@torch.no_grad()
def answer(model: nn.Module, images: Tensor) -> Tensor:
    result: Tensor = model(images)
    return result


@pytest.fixture
def images() -> Tensor:
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def model(weather_model: nn.Module) -> nn.Module:
    """The base with the three adapters, the last of them active."""
    return weather_model


@pytest.fixture
def alone(weather_outputs, images: Tensor) -> dict[str | None, Tensor]:
    """The outputs of each adapter alone, and of the base."""
    return weather_outputs(images)


def test_load_adapter__with_a_name_makes_it_the_active_one(build: Build, weather_files, alone, images: Tensor) -> None:
    model = build()
    for name, path in weather_files.items():
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
    assert {key.split(".adapters.")[1].split(".")[0] for key in state if key not in base.state_dict()} == {
        "night",
        "rain",
        "snow",
    }
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert count(model).trainable == 0
    assert count(model).total == sum(parameter.numel() for parameter in model.parameters())


def test_set_adapters__mixes_updates_of_weights_and_values(build: Build, weather_files, images: Tensor) -> None:
    model, parts = build(), []
    for name in ("night", "rain"):
        load_adapter(model, weather_files[name], name=name)
        single = build()
        load_adapter(single, weather_files[name])
        merge(single)
        parts.append(single.state_dict())
    set_adapters(model, {"night": 0.7, "rain": -0.3})
    mixed = build()
    state = mixed.state_dict()
    for key, value in state.items():
        if value.is_floating_point():
            value += 0.7 * (parts[0][key] - value) - 0.3 * (parts[1][key] - value)
    torch.testing.assert_close(answer(model, images), answer(mixed.requires_grad_(False), images), rtol=1e-5, atol=1e-5)
    assert adapters(model) == {"night": 0.7, "rain": -0.3}
    before = answer(model, images)
    merge(model)
    torch.testing.assert_close(answer(model, images), before, rtol=1e-5, atol=1e-5)
    assert list(model.state_dict()) == list(build().state_dict())


def test_set_adapters__mixes_outputs_of_any_delta(build: Build, write_adapter, images: Tensor) -> None:
    plans = {"one": Plan({"conv": Adapter(width=3)}), "other": Plan({"conv": [LoRA(2), ScaleShift()]})}
    model, outputs = build(), []
    for name, plan in plans.items():
        load_adapter(model, write_adapter(name, plan), name=name)
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
    model: nn.Module, weather_files, alone, images: Tensor, tmp_path: Path
) -> None:
    set_adapters(model, "rain")
    for name, path in weather_files.items():
        save_adapter(model, tmp_path / "again", name=name)
        assert (tmp_path / "again").read_bytes() == path.read_bytes()
    assert torch.equal(answer(model, images), alone["rain"])


def test_remove__keeps_the_active_values_and_takes_the_deltas(
    model: nn.Module, build: Build, alone, images: Tensor
) -> None:
    set_adapters(model, None)
    remove(model)
    assert adapters(model) == {}
    assert torch.equal(answer(model.requires_grad_(False), images), alone[None])


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


def test_load_adapter__refuses_and_leaves_the_others(
    model: nn.Module, build: Build, weather_files, alone, images: Tensor
) -> None:
    set_adapters(model, "night")
    with pytest.raises(PlanError, match="has an adapter `rain` already"):
        load_adapter(model, weather_files["rain"], name="rain")
    with pytest.raises(PlanError, match="cannot be the name"):
        load_adapter(model, weather_files["rain"], name="a.b")
    with pytest.raises(PlanError, match=r"named adapters \(night, rain, snow\)"):
        load_adapter(model, weather_files["rain"])
    with pytest.raises(PlanError, match="named adapters"):
        save_adapter(model, weather_files["rain"])
    with pytest.raises(PlanError, match="has a plan already"):
        inject(model, NIGHT)
    other = build()
    with torch.no_grad():
        other.conv.weight.add_(1)
    inject(other, NIGHT)
    save_adapter(other, weather_files["snow"])
    with pytest.raises(CheckpointError, match="fingerprint"):
        load_adapter(model, weather_files["snow"], name="fog")
    assert adapters(model) == {"night": 1.0, "rain": 0.0, "snow": 0.0}
    assert torch.equal(answer(model, images), alone["night"])
    unnamed = build()
    load_adapter(unnamed, weather_files["night"])
    with pytest.raises(PlanError, match="a plan without a name"):
        load_adapter(unnamed, weather_files["rain"], name="rain")
    with pytest.raises(CheckpointError, match="load each into a plain base with a name"):
        load_adapter(unnamed, weather_files["rain"])


def test_set_adapters__refuses_unknown_names_weights_and_prompts(model: nn.Module, build: Build, write_adapter) -> None:
    with pytest.raises(PlanError, match="no adapter `fog`"):
        set_adapters(model, "fog")
    with pytest.raises(PlanError, match="must be finite"):
        set_adapters(model, {"night": float("nan")})
    with pytest.raises(PlanError, match="no named adapters"):
        set_adapters(build(), "night")
    load_adapter(model, write_adapter("tokens", Plan({"blocks.*": VPT(2)})), name="tokens")
    with pytest.raises(PlanError, match=r"changes the inputs of `blocks\.0`"):
        set_adapters(model, {"tokens": 0.5})


def test_precision__follows_the_model(model: nn.Module, alone, images: Tensor, weather_files, tmp_path: Path) -> None:
    model.to(torch.float64)
    for name in ("rain", "snow"):
        set_adapters(model, name)
        torch.testing.assert_close(answer(model, images.double()), alone[name].double(), rtol=1e-4, atol=1e-4)
    with adapter_per_image(model, ["night", "rain", "snow", None]):
        assert answer(model, images.double()).dtype == torch.float64
    save_adapter(model, tmp_path / "again", name="rain")
    load_adapter(model, tmp_path / "again", name="again")


def test_compile__does_not_compile_again_for_a_switch(build: Build, write_adapter, images: Tensor) -> None:
    model = build()
    for name in ("one", "two", "three", "four"):
        load_adapter(model, write_adapter(name, NIGHT), name=name)
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


@pytest.mark.parametrize("second", [LoRA(2), DoRA(2), ScaleShift(), IA3(side="input")], ids=lambda one: one.name)
def test_merge__of_a_named_adapter_equals_that_of_the_unnamed_one(
    second: Method, shake: Callable[[nn.Module], None], tmp_path: Path
) -> None:
    base = nn.Sequential(nn.Linear(4, 4), nn.Tanh()).double()
    model, x = copy.deepcopy(base), torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    inject(model, Plan({"0": (RepAdapter(width=2, groups=1), second)}))
    shake(model)
    y = model(x)
    save_adapter(model, tmp_path / "a.safetensors")
    load_adapter(base, tmp_path / "a.safetensors", name="a")
    for merged in (model, base):
        merge(merged)
        torch.testing.assert_close(merged(x), y)
