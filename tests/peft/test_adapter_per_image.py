"""One batch with an adapter for each image."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from vispeft.errors import PlanError
from vispeft.peft import (
    Adapter,
    LoRA,
    Plan,
    ScaleShift,
    adapter_per_image,
    drop_adapter,
    inject,
    load_adapter,
    merge,
    remove,
    save_adapter,
    set_adapters,
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


def test_adapter_per_image__serves_every_method(case, build: Build, write_adapter, images: Tensor) -> None:
    model = build()
    load_adapter(model, write_adapter("case", case.plan), name="case")
    load_adapter(model, write_adapter("night", NIGHT), name="night")
    expected = {}
    for name in ("case", "night"):
        set_adapters(model, name)
        expected[name] = answer(model, images)
    names = ("case", "night", "case", "night")
    if any(method.name in ("vpt", "prefix") for _, method in case.plan.entries()):
        with pytest.raises(PlanError, match="inputs of several sizes"), adapter_per_image(model, names):
            answer(model, images)
        with adapter_per_image(model, ["case"] * 4):
            torch.testing.assert_close(answer(model, images), expected["case"], rtol=1e-5, atol=1e-5)
        return
    with adapter_per_image(model, names):
        together = answer(model, images)
    for index, name in enumerate(names):
        torch.testing.assert_close(together[index], expected[name][index], rtol=1e-5, atol=1e-5)


def test_adapter_per_image__serves_projections_that_attention_reads(
    build: Build, write_adapter, images: Tensor
) -> None:
    model = build()
    load_adapter(
        model,
        write_adapter("full", Plan({"self_attn.in_proj_weight": LoRA(2)}, ["self_attn.out_proj.**"])),
        name="full",
    )
    load_adapter(model, write_adapter("delta", Plan({"self_attn.out_proj.weight": LoRA(2)})), name="delta")
    names = ("delta", "full", None, "delta")
    expected = []
    for index, name in enumerate(names):
        set_adapters(model, name)
        expected.append(answer(model, images)[index])
    with adapter_per_image(model, names):
        together = answer(model, images)
    torch.testing.assert_close(together, torch.stack(expected), rtol=1e-5, atol=1e-5)


def test_adapter_per_image__serves_deltas_and_biases_of_one_module(build: Build, write_adapter, images: Tensor) -> None:
    model, sites = build(), "blocks.*.mlp.fc1 | conv"
    load_adapter(
        model, write_adapter("both", Plan({sites: LoRA(2)}, ["blocks.*.mlp.fc1.bias", "conv.bias"])), name="both"
    )
    load_adapter(model, write_adapter("delta", Plan({sites: ScaleShift()}, ["bn"])), name="delta")
    names, expected = ("delta", "both", None, "both"), []
    for index, name in enumerate(names):
        set_adapters(model, name)
        expected.append(answer(model, images)[index])
    with adapter_per_image(model, names):
        torch.testing.assert_close(answer(model, images), torch.stack(expected), rtol=1e-5, atol=1e-5)
    set_adapters(model, {"both": 0.5, "delta": 0.5})
    mixed = answer(model, images)
    merge(model)
    torch.testing.assert_close(answer(model, images), mixed, rtol=1e-5, atol=1e-5)


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


@dataclass
class Result:
    y: Tensor


class Opaque(nn.Module):
    """A model with a parameter of its own whose output is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(6))

    def forward(self, images: Tensor) -> Result:
        return Result(images * self.scale)


def test_adapter_per_image__refuses_outputs_without_known_tensors(tmp_path: Path) -> None:
    model = Opaque()
    inject(model, Plan(train=["scale"]))
    save_adapter(model, tmp_path / "one")
    remove(model)
    load_adapter(model, tmp_path / "one", name="one")
    with adapter_per_image(model, ["one", None]), pytest.raises(PlanError, match="an output that is a Result"):
        model(torch.randn(2, 5, 6))
    with adapter_per_image(model, ["one", "one"]):
        assert model(torch.randn(2, 5, 6)).y.shape == (2, 5, 6)


class Several(nn.Module):
    """A module that gets tokens, positions that all images share, and a mask of each image."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(6))

    def forward(self, tokens: Tensor, positions: Tensor, *, mask: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        y = (tokens * self.weight + positions) * mask[..., None]
        return positions, {"y": y, "sum": y.sum((1, 2))}


class Caller(nn.Module):
    """Calls such a module."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Several()

    def forward(self, images: Tensor) -> Tensor:
        positions, outputs = self.inner(images, torch.ones(images.shape[1], 6), mask=images[..., 0] > 0)
        assert positions.shape == images.shape[1:]
        return outputs["y"].mean((1, 2)) + outputs["sum"]


def test_adapter_per_image__splits_the_inputs_and_outputs_that_grow_with_the_images(tmp_path: Path) -> None:
    model, images = Caller(), torch.randn(4, 4, 6)
    for name, value in (("one", 1), ("other", -2)):
        single = Caller()
        inject(single, Plan(train=["inner.weight"]))
        with torch.no_grad():
            single.inner.weight.add_(value)
        save_adapter(single, tmp_path / name)
        load_adapter(model, tmp_path / name, name=name)
    names, expected = ("one", "other", None, "one"), []
    for index, name in enumerate(names):
        set_adapters(model, name)
        expected.append(answer(model, images)[index])
    with adapter_per_image(model, names):
        torch.testing.assert_close(answer(model, images), torch.stack(expected))


class Tied(nn.Module):
    """Two maps with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.second.weight = self.first.weight

    def forward(self, images: Tensor) -> Tensor:
        return self.second(self.first(images).relu())


def test_adapter_per_image__changes_a_weight_in_every_module_that_has_it(tmp_path: Path) -> None:
    model, images = Tied(), torch.randn(2, 5, 6)
    with torch.no_grad():
        before = model.first.weight.clone()
        inject(model, Plan(train=["first.weight"]))
        model.first.weight.add_(1)
        expected = model(images[:1])
        save_adapter(model, tmp_path / "one")
        remove(model)
        model.first.weight.copy_(before)
    load_adapter(model, tmp_path / "one", name="one")
    with adapter_per_image(model, ["one", None]):
        torch.testing.assert_close(answer(model, images)[:1], expected)


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
    model: nn.Module, build: Build, write_adapter, images: Tensor
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
    load_adapter(full, write_adapter("full", Plan(train=["reader"])), name="full")
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


def test_copies__have_adapters_and_batches_of_their_own(
    build: Build, write_adapter, images: Tensor, tmp_path: Path
) -> None:
    model = build()
    load_adapter(model, write_adapter("one", Plan({"conv": LoRA(2)}, ["self_attn.**", "head.**"])), name="one")
    load_adapter(model, write_adapter("two", NIGHT), name="two")
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
                assert torch.equal(answer(model, images), answer(build().requires_grad_(False), images))
        else:
            with pytest.raises(PlanError, match="read it without a call"), adapter_per_image(model, [name] * 4):
                answer(model, images)
