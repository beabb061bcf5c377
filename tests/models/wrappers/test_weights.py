"""Directories of transformers: class heads of another size, faults, and what is written."""

from __future__ import annotations

import json
import logging
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from vispeft.errors import CheckpointError, ConfigError
from vispeft.models import SegmentationModel, build_model
from vispeft.models.base import SavesDirectory
from vispeft.models.wrappers.weights import fit_class_head, image_size_in, num_classes_in

Directory = Callable[[str], Path]


def built(source: Path | str, *, num_classes: int = 3, **arguments: Any) -> SegmentationModel:
    return build_model("transformers", backbone=str(source), num_classes=num_classes, pretrained=True, **arguments)


def test_fit_class_head__keeps_the_odds_against_no_object() -> None:
    torch.manual_seed(0)
    state = {"head.weight": torch.randn(4, 8), "head.bias": torch.randn(4), "criterion.empty_weight": torch.ones(4)}
    state["criterion.empty_weight"][3] = 0.1
    fitted = fit_class_head(state, "head", 5)
    assert torch.equal(fitted["head.weight"][:5], state["head.weight"][:3].mean(0).expand(5, -1))
    assert torch.equal(fitted["head.weight"][5], state["head.weight"][3])
    odds, expected = (bias[:-1].logsumexp(0) - bias[-1] for bias in (fitted["head.bias"], state["head.bias"]))
    torch.testing.assert_close(odds, expected)
    assert fitted["criterion.empty_weight"].tolist() == pytest.approx([1, 1, 1, 1, 1, 0.1])
    assert fit_class_head(state, "head", 3) == state


@pytest.mark.parametrize("model_type", ["mask2former", "maskformer", "oneformer", "eomt"])
def test_build_model__fits_the_class_head_and_keeps_the_rest(
    model_type: str, transformers_directory: Directory
) -> None:
    directory = transformers_directory(model_type)
    assert num_classes_in(directory) == 3
    given, fitted = built(directory).state_dict(), built(directory, num_classes=5).state_dict()
    other = {name for name in given if given[name].shape != fitted[name].shape}
    assert {name.rsplit(".", 1)[1] for name in other} == {"weight", "bias", "empty_weight"}
    assert all(torch.equal(given[name], fitted[name]) for name in given.keys() - other)


def test_build_model__without_weights_is_random(transformers_directory: Directory) -> None:
    directory = transformers_directory("eomt")
    random = build_model("transformers", backbone=str(directory), num_classes=2)
    name = "network.mask_head.fc1.weight"
    assert not torch.equal(random.state_dict()[name], built(directory).state_dict()[name])


def test_build_model__sets_fields_of_the_configuration(transformers_directory: Directory) -> None:
    model: Any = built(transformers_directory("mask2former"), no_object_weight=0.5)
    assert model.network.criterion.eos_coef == 0.5
    with pytest.raises(ConfigError, match="`options` has no 'no_objects'"):
        built(transformers_directory("mask2former"), no_objects=0.5)
    with pytest.raises(ConfigError, match=r"`options.num_queries` is not usable: .*int"):
        built(transformers_directory("mask2former"), num_queries="many")


@pytest.mark.parametrize(
    ("argument", "value"), [("size", "tiny"), ("backbone_options", {"depth": 3}), ("backbone_weights", "a.pth")]
)
def test_build_model__refuses_arguments_of_our_families(
    argument: str, value: Any, transformers_directory: Directory
) -> None:
    with pytest.raises(ConfigError, match=f"`{argument}` must be left out with `name: transformers`"):
        built(transformers_directory("eomt"), **{argument: value})


def test_image_size_in__is_the_processors_longer_side(transformers_directory: Directory) -> None:
    assert image_size_in(str(transformers_directory("mask2former"))) == 64
    assert image_size_in(str(transformers_directory("eomt"))) == 64


def test_build_model__says_what_is_wrong_with_a_place(tmp_path: Path, transformers_directory: Directory) -> None:
    with pytest.raises(
        CheckpointError, match=r"must name a directory of transformers or a model of its hub, but .* does"
    ):
        built(tmp_path / "nothing")
    file = tmp_path / "model.pth"
    file.write_bytes(b"x")
    with pytest.raises(CheckpointError, match="is a file"):
        built(file)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(CheckpointError, match=r"The directory .*empty cannot be read as a model of transformers"):
        built(empty)
    bare = tmp_path / "bare"
    shutil.copytree(transformers_directory("eomt"), bare)
    (bare / "preprocessor_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no `preprocessor_config\.json`"):
        built(bare)


def test_build_model__says_that_the_hub_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers")

    hub_logger = logging.getLogger("huggingface_hub")
    level = hub_logger.level

    def offline(*_: Any, **__: Any) -> None:
        # its client of the hub reports each of five retries
        assert not hub_logger.isEnabledFor(logging.WARNING)
        raise OSError("We couldn't connect to 'https://huggingface.co'.\nMore lines.")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", offline)
    with pytest.raises(
        CheckpointError, match="The model someone/mask2former is not here and could not be downloaded"
    ) as e:
        built("someone/mask2former")
    assert "\n" not in str(e.value)
    assert hub_logger.level == level


def test_build_model__says_that_the_library_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match=r"not installed\. Install it: pip install 'vispeft\[hf\]'"):
        built("someone/mask2former")


def test_build_model__refuses_a_model_without_queries(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    transformers.SegformerConfig().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="its type is segformer, which has no class and mask queries"):
        built(tmp_path)
    transformers.DetrConfig(backbone_config=transformers.ResNetConfig()).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="its type is detr"):
        built(tmp_path)


def test_build_model__refuses_weights_that_lack_parameters(tmp_path: Path, transformers_directory: Directory) -> None:
    from safetensors.torch import load_file, save_file

    directory = tmp_path / "part"
    shutil.copytree(transformers_directory("eomt"), directory)
    tensors = {k: v for k, v in load_file(directory / "model.safetensors").items() if not k.startswith("mask_head")}
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lack mask_head\.fc1\.bias"):
        built(directory)


def test_build_model__does_not_execute_a_pickle(tmp_path: Path, transformers_directory: Directory) -> None:
    directory, witness = tmp_path / "pickled", tmp_path / "witness"
    shutil.copytree(transformers_directory("eomt"), directory)
    (directory / "model.safetensors").unlink()

    class Malicious:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (witness,)

    (directory / "pytorch_model.bin").write_bytes(pickle.dumps(Malicious()))
    with pytest.raises(CheckpointError, match="cannot be read as a model of transformers"):
        built(directory)
    assert not witness.exists()


@pytest.mark.parametrize("model_type", ["mask2former", "maskformer", "oneformer", "eomt"])
def test_save_directory__is_opened_by_transformers(
    model_type: str, tmp_path: Path, transformers_directory: Directory
) -> None:
    transformers = pytest.importorskip("transformers")
    model = built(transformers_directory(model_type), num_classes=2)
    assert isinstance(model, SavesDirectory)
    model.save_directory(tmp_path / "out", class_names=["nut", "fruit"])
    opened = transformers.AutoModelForUniversalSegmentation.from_pretrained(tmp_path / "out")
    assert opened.config.id2label == {0: "nut", 1: "fruit"}
    ours = model.state_dict()
    assert all(torch.equal(tensor, ours[f"network.{name}"]) for name, tensor in opened.state_dict().items())
    processor = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())
    assert processor["image_mean"] == [0.5, 0.4, 0.3]
    again = built(tmp_path / "out", num_classes=2)
    assert all(torch.equal(tensor, ours[name]) for name, tensor in again.state_dict().items())
