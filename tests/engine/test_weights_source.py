"""`model.weights` by address, by name of the hub, and by name of a published model."""

from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load

from vispeft.config import Config, parse_config
from vispeft.engine import RunDirectory, load_run, train_run, write_merged
from vispeft.engine.build import build_base, kept_class_names, model_arguments, size_of
from vispeft.engine.weights_source import is_shared, local_directory, local_weights, published
from vispeft.errors import CheckpointError, ConfigError
from vispeft.models.wrappers import weights as transformers_weights
from vispeft.zoo import MODELS, ZooModel

PLAN = {"train": ["@heads"]}


@pytest.fixture(scope="module")
def merged(finished: RunDirectory, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A weights file that names its model."""
    path = tmp_path_factory.mktemp("merged") / "model.safetensors"
    write_merged(load_run(finished.root), path)
    return path.read_bytes()


def assert_loads(config: Config, merged: bytes) -> None:
    """The configuration gives the model of a weights file."""
    expected = load(merged)
    model = build_base(config, len(expected["decoder.class_embed.weight"]))
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=0, msg=name)


def of(weights: str, **keys: Any) -> Config:
    return parse_config({"model": {"weights": weights, **keys}, "peft": PLAN})


def test_weights__by_address(hub: Any, merged: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    hub.files["/model.safetensors"] = merged
    config = of(f"{hub.url}/model.safetensors")
    assert_loads(config, merged)
    assert size_of(config.model) == 64
    assert len(hub.requests) == 1
    assert "fetch model.safetensors 1/1 (100 %)" in capfd.readouterr().err


def test_weights__by_address_keep_classes(hub: Any, merged: bytes, finished: RunDirectory) -> None:
    hub.files["/model.safetensors"] = merged
    config = of(f"{hub.url}/model.safetensors", keep_classes=True)
    assert kept_class_names(config.model) == load_run(finished.root).class_names


@pytest.mark.parametrize("file", ["", "/model.safetensors", "/model.safetensors@main"])
def test_weights__by_name_of_the_hub(file: str, hub: Any, hub_stand_in: ModuleType, merged: bytes) -> None:
    files = {"README.md": b"", "model.safetensors": merged, "pytorch_model.bin": b"not read"}
    hub.repositories["a/b"] = hub_stand_in.Repository(files)
    assert_loads(of(f"hf://a/b{file}"), merged)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"README.md": b""}, "holds no weights file"),
        ({"a.pth": b"", "b.pth": b""}, r"holds 2 weights files: a\.pth, b\.pth\. Name one of them: hf://a/b/FILE"),
    ],
    ids=["none", "several"],
)
def test_weights__of_a_repository_must_be_one(
    files: dict[str, bytes], message: str, hub: Any, hub_stand_in: ModuleType
) -> None:
    hub.repositories["a/b"] = hub_stand_in.Repository(files)
    with pytest.raises(CheckpointError, match=message):
        build_base(of("hf://a/b"), 3)


def test_run__from_an_address_resumes_offline(
    hub: Any, merged: bytes, tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.files["/model.safetensors"] = merged
    raw = {**tiny, "model": {"weights": f"{hub.url}/model.safetensors"}}
    directory = RunDirectory(tmp_path / "run")
    train_run(parse_config(raw, ["train.steps=1"]), directory)
    monkeypatch.setenv("VISPEFT_OFFLINE", "1")
    count = len(hub.requests)
    result = train_run(parse_config(raw, ["train.steps=2"]), directory, resume=True)
    assert result.step == 2
    assert load_run(directory.root).model.num_queries == 12
    assert len(hub.requests) == count == 1


@pytest.fixture
def entry(hub: Any, merged: bytes, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> ZooModel:
    """A published model at the stand-in."""
    hub.files["/model.safetensors"] = merged
    keys = tiny["model"]
    arguments = {key: keys[key] for key in ("backbone", "size", "backbone_options")}
    arguments |= keys["options"]
    weights = f"{hub.url}/model.safetensors"
    model = replace(MODELS["mask_dino_r50"], name="small", weights=weights, image_size=64, arguments=arguments)
    monkeypatch.setitem(MODELS, "small", model)
    return model


def test_published__decides_family_and_sizes(entry: ZooModel, merged: bytes, hub: Any) -> None:
    config = of("small", backbone="vit_tiny_patch16_224")
    assert config.model.name == "mask_dino"
    assert model_arguments(config.model)["dim"] == 32
    assert size_of(config.model) == 64
    assert size_of(of("small", image_size=96).model) == 96
    build_base(config, 3, with_weights=False)
    assert not hub.requests
    assert_loads(config, merged)


def test_published__refuses_other_models(entry: ZooModel) -> None:
    with pytest.raises(ConfigError, match=r"`model\.backbone` must be left out with `model\.weights: small`"):
        build_base(of("small", backbone="resnet18"), 3)
    with pytest.raises(ConfigError, match=r"`model\.name` must be mask_dino with `model\.weights: small`"):
        of("small", name="eomt")


def test_published__may_lack_the_encoder(entry: ZooModel, monkeypatch: pytest.MonkeyPatch, hub: Any) -> None:
    from vispeft.engine import build

    asked: list[bool] = []
    original = build.build_model

    def recorded(*args: Any, pretrained: bool, **kwargs: Any) -> Any:
        asked.append(pretrained)
        return original(*args, pretrained=False, **kwargs)

    monkeypatch.setattr(build, "build_model", recorded)
    monkeypatch.setitem(MODELS, "small", replace(entry, has_timm_encoder=True))
    build_base(of("small"), 3)
    build_base(of("small"), 3, with_weights=False)
    assert asked == [True, False]


def test_published__is_not_the_bundled_base() -> None:
    assert "bundled" in MODELS
    assert published("bundled") is None
    assert published("nonsense") is None


def test_is_shared__is_true_for_what_others_can_fetch() -> None:
    for weights in ("bundled", "pretrained", "none", "mask_dino_r50", "https://a.b/c", "hf://a/b"):
        assert is_shared(weights)
    assert not is_shared("model.pth")


def test_local_directory__is_a_directory_of_transformers(
    hub: Any, hub_stand_in: ModuleType, transformers_directory: Any
) -> None:
    source = transformers_directory("mask2former")
    files = {path.name: path.read_bytes() for path in source.iterdir()} | {"training_args.bin": b"a pickle"}
    hub.repositories["a/b"] = hub_stand_in.Repository(files)
    folder = Path(local_directory("hf://a/b"))
    assert {path.name for path in folder.iterdir()} == {path.name for path in source.iterdir()}
    assert transformers_weights.num_classes_in(folder) == 3
    model = build_base(of("hf://a/b", name="transformers"), 3)
    expected = build_base(of(str(source), name="transformers"), 3)
    for name, tensor in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)
    assert local_directory("a/b") == "a/b"
    # our own family reads the same repository
    own = build_base(of("hf://a/b", name="mask2former"), 3)
    assert own.num_classes == 3
    local = build_base(of(str(source), name="mask2former"), 3)
    torch.testing.assert_close(own.state_dict(), local.state_dict(), rtol=0, atol=0)


def test_local_directory__says_what_is_lacking(hub: Any, hub_stand_in: ModuleType) -> None:
    hub.repositories["a/b"] = hub_stand_in.Repository({"model.safetensors": b""})
    with pytest.raises(CheckpointError, match=r"hf://a/b has no config\.json"):
        local_directory("hf://a/b")
    with pytest.raises(CheckpointError, match="names a file of it"):
        local_directory("hf://a/b/model.safetensors")


def test_local_weights__shows_the_nearest_name() -> None:
    with pytest.raises(
        CheckpointError, match=r"`model\.weights: mask2former_r5` is neither .* Did you mean `mask2former_r50`"
    ):
        local_weights("mask2former_r5", lambda folder, out: out)
    assert local_weights("mask2former_r5.pth", lambda folder, out: out) == Path("mask2former_r5.pth")
