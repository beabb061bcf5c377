"""The adapter file."""

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vispeft.errors import CheckpointError, PlanError
from vispeft.peft import (
    Adapter,
    LoRA,
    Plan,
    checkpoint,
    describe,
    inject,
    load_adapter,
    save_adapter,
    set_adapters,
    train_mode,
)
from vispeft.peft.inject import is_injected

Build = Callable[[], nn.Module]
Train = Callable[[nn.Module, Tensor], None]

PLAN = Plan(
    {"blocks.*.attn.qkv": LoRA(2, parts="qv"), "conv": [Adapter(width=2), LoRA(2)], "reader.weight": LoRA(2)},
    ["head.**", "bn"],
)


@pytest.fixture
def file(build: Build, images: Tensor, train: Train, tmp_path: Path) -> Path:
    """A trained plan of every kind, saved."""
    model = build()
    inject(model, PLAN)
    train_mode(model, update_statistics=True)
    train(model, images)
    save_adapter(model, tmp_path / "deep" / "adapter.safetensors", metadata={"classes": ["a"]})
    return tmp_path / "deep" / "adapter.safetensors"


def test_save__holds_what_was_trained_and_only_that(file: Path) -> None:
    assert set(load_file(file)) == {
        *(f"blocks.{index}.attn.qkv.lora.{factor}" for index in (0, 1) for factor in "ab"),
        *(f"conv.adapter.0.{name}" for name in ("down_w", "down_b", "up_w", "up_b")),
        *("conv.lora.a", "conv.lora.b", "reader.weight.lora.a", "reader.weight.lora.b"),
        *("head.weight", "head.bias"),
        *(f"bn.{name}" for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")),
    }
    assert [path.name for path in file.parent.iterdir()] == ["adapter.safetensors"]


def test_save__is_everyones_to_read(file: Path) -> None:
    (file.parent / "other").touch()
    assert file.stat().st_mode == (file.parent / "other").stat().st_mode


def test_load__restores_the_statistics_of_a_thawed_norm(file: Path, build: Build) -> None:
    model = build()
    before = model.bn.running_mean.clone()
    load_adapter(model, file)
    assert not torch.equal(model.bn.running_mean, before)


class Counted(nn.Module):
    """A head with a norm without parameters, and a buffer of its own that training changes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(4, 4), nn.BatchNorm1d(4, affine=False), nn.Linear(4, 2)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen += len(x)
        y: Tensor = self.last(self.norm(self.first(x)))
        return y


@pytest.fixture
def counted(tmp_path: Path) -> tuple[nn.Module, nn.Module, Path]:
    """A base with such a head, the trained model, and its file."""
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(4, 4), Counted()).eval()
    model = copy.deepcopy(base)
    inject(model, Plan({"0": LoRA(2)}, train=["1"]))
    train_mode(model, update_statistics=True)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(torch.randn(8, 4)).square().sum().backward()
    optimizer.step()
    save_adapter(model.eval(), tmp_path / "counted.safetensors")
    return base, model, tmp_path / "counted.safetensors"


@pytest.mark.parametrize("name", [None, "a"])
def test_load__restores_buffers_inside_a_part_that_was_trained_as_a_whole(
    counted: tuple[nn.Module, nn.Module, Path], name: str | None
) -> None:
    base, model, file = counted
    plain, x = copy.deepcopy(base), torch.randn(3, 4)
    load_adapter(base, file, name=name)
    assert base[1].seen == 8
    assert torch.equal(base(x), model(x))
    if name is not None:
        save_adapter(base, file, name=name)
        load_adapter(plain, file)
        assert torch.equal(plain(x), model(x))
        set_adapters(base, None)
        assert base[1].seen == 0


def test_load__reads_files_of_earlier_versions_without_these_buffers(
    counted: tuple[nn.Module, nn.Module, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    base, model, file = counted
    for buffer, value in zip(model.buffers(), base.buffers(), strict=True):
        buffer.copy_(value)  # those versions refused changed ones
    with monkeypatch.context() as earlier:
        earlier.setattr(checkpoint, "buffers_inside", lambda model, trained: [])
        save_adapter(model, file)
    assert not any("seen" in key or "norm" in key for key in load_file(file))
    load_adapter(base, file)
    x = torch.randn(3, 4)
    assert torch.equal(base(x), model(x))


def test_load__gives_back_the_plan_and_goes_on_training(file: Path, build: Build, images: Tensor, train: Train) -> None:
    model = build()
    loaded = load_adapter(model, file)
    assert loaded == describe(file)
    assert loaded.architecture == "Net"
    assert loaded.plan.deltas["conv"] == (Adapter(width=2), LoRA(2))
    train(model, images)


def test_load__into_a_model_with_the_same_plan_replaces_its_values(file: Path, build: Build, images: Tensor) -> None:
    model, fresh = build(), build()
    inject(model, PLAN)
    load_adapter(model, file)
    load_adapter(fresh, file)
    assert torch.equal(model(images), fresh(images))


def test_load__refuses_a_model_with_another_plan(file: Path, build: Build) -> None:
    model = build()
    inject(model, Plan({}, ["head.**", "bn"]))
    with pytest.raises(CheckpointError, match=r"another plan.*Call `remove\(model\)`"):
        load_adapter(model, file)


def test_load__a_full_plan_fits_any_weights_of_the_same_shapes(build: Build, images: Tensor, tmp_path: Path) -> None:
    model, other = build(), build()
    inject(model, Plan.full())
    with torch.no_grad():
        model.head.weight.add_(1)
        other.conv.weight.add_(1)
    save_adapter(model, tmp_path / "full.safetensors")
    load_adapter(other, tmp_path / "full.safetensors")
    assert torch.equal(other(images), model(images))


def test_load__takes_back_deltas_on_a_base_that_was_trained_in_full(
    build: Build, images: Tensor, train: Train, tmp_path: Path
) -> None:
    model, fresh = build(), build()
    inject(model, Plan({"blocks.*.attn.qkv": LoRA(2)}, ["**"]))
    train_mode(model)
    train(model, images)
    save_adapter(model, tmp_path / "adapter.safetensors")
    load_adapter(fresh, tmp_path / "adapter.safetensors")
    assert torch.equal(fresh.eval()(images), model.eval()(images))


def test_inject__refuses_a_rank_beyond_both_sides_of_a_site(build: Build) -> None:
    with pytest.raises(PlanError, match=r"`rank` must be at most \d+, the larger side of this site, but is 1000000000"):
        inject(build(), Plan({"blocks.*.attn.qkv": LoRA(10**9)}))


@pytest.mark.parametrize("place", ["file/adapter.safetensors", "folder"])
def test_save__says_where_it_cannot_write(build: Build, tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    model = build()
    inject(model, PLAN)
    with pytest.raises(CheckpointError, match=rf"{place}` cannot be written: (File exists|Is a directory)"):
        save_adapter(model, tmp_path / place)
    assert {path.name for path in tmp_path.iterdir()} == {"file", "folder"}


def test_load__refuses_another_architecture_by_name(file: Path) -> None:
    with pytest.raises(CheckpointError, match=r"another base: this model has no `\w+"):
        load_adapter(nn.Sequential(nn.Linear(2, 2)), file)


def test_load__refuses_another_number_of_classes_by_name(file: Path, build: Build) -> None:
    model = build()
    model.head = nn.Linear(8, 7)
    with pytest.raises(CheckpointError, match=r"`head\.\w+` is \[.*with as many classes"):
        load_adapter(model, file)
    assert not is_injected(model)
    assert list(model.state_dict()) == list(build().state_dict())


def _without_tensor(file: Path) -> None:
    tensors = load_file(file)
    del tensors["conv.lora.a"]
    save_file(tensors, file, metadata={"vispeft": json.dumps(_header(file))})


def _of_format_2(file: Path) -> None:
    save_file(load_file(file), file, metadata={"vispeft": json.dumps({**_header(file), "format": 2})})


def _header(file: Path) -> dict[str, object]:
    size = int.from_bytes(file.read_bytes()[:8], "little")
    header: dict[str, object] = json.loads(json.loads(file.read_bytes()[8 : 8 + size])["__metadata__"]["vispeft"])
    return header


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda file: file.write_bytes(file.read_bytes()[:-100]), "cannot be read as a safetensors file"),
        (lambda file: file.write_bytes(b""), "cannot be read as a safetensors file"),
        (lambda file: file.unlink(), "is not a file"),
        (lambda file: save_file(load_file(file), file), "not an adapter file of vispeft"),
        (_without_tensor, r"lacks \['conv\.lora\.a'\]"),
        (_of_format_2, "has format 2, but this vispeft reads format 1"),
        (lambda file: save_file({}, file, metadata={"vispeft": "{"}), "damaged header"),
    ],
    ids=["cut", "empty", "missing", "foreign", "lacking", "newer", "header"],
)
def test_load__refuses_a_damaged_file_and_leaves_the_model(
    file: Path, build: Build, damage: Callable[[Path], None], message: str
) -> None:
    damage(file)
    model = build()
    with pytest.raises(CheckpointError, match=message):
        load_adapter(model, file)
    assert not is_injected(model)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_save__refuses_metadata_that_json_cannot_hold(build: Build, tmp_path: Path) -> None:
    model = build()
    inject(model, PLAN)
    with pytest.raises(CheckpointError, match="`metadata` must be plain values"):
        save_adapter(model, tmp_path / "a.safetensors", metadata={"mean": torch.zeros(3)})
    assert list(tmp_path.iterdir()) == []


def test_save__needs_a_plan(build: Build, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="no plan"):
        save_adapter(build(), tmp_path / "a.safetensors")


def test_save__needs_the_name_of_a_file(build: Build) -> None:
    model = build()
    inject(model, PLAN)
    with pytest.raises(CheckpointError, match=r"`\.` must be the name of a file"):
        save_adapter(model, "")


def test_save_and_load__refuse_a_model_without_values(file: Path, build: Build, tmp_path: Path) -> None:
    model = build().to("meta")
    with pytest.raises(CheckpointError, match="is on the meta device and has no values"):
        load_adapter(model, file)
    assert not is_injected(model)
    inject(model, PLAN)
    with pytest.raises(CheckpointError, match="is on the meta device and has no values"):
        save_adapter(model, tmp_path / "a.safetensors")


def test_load__refuses_a_fingerprint_that_is_no_text(build: Build, tmp_path: Path) -> None:
    header = {"format": 1, "plan": {"deltas": {}, "train": []}, "architecture": "x", "fingerprint": 3, "metadata": {}}
    save_file({"a": torch.ones(1)}, tmp_path / "a.safetensors", {"vispeft": json.dumps(header)})
    with pytest.raises(CheckpointError, match="was trained on a x with fingerprint 3"):
        load_adapter(build(), tmp_path / "a.safetensors")
