"""The table of published models: its page, its files, and what its entries say."""

import re
from importlib import import_module
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from vispeft.errors import ConfigError
from vispeft.io.checksums import split_checksum
from vispeft.io.downloads import is_url
from vispeft.io.hub import HubName, is_hub_name
from vispeft.zoo import BACKBONES, MODELS, ZooModel, find_model
from vispeft.zoo.page import fields_of, page

ROOT = Path(__file__).parents[2]
EACH = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)


def test_page__is_that_of_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "tools")
    tool = import_module("zoo_page")
    assert tool.PAGE.read_text(encoding="utf-8") == page(), "run `python tools/zoo_page.py`"


def test_page__has_a_row_and_a_section_for_each_model() -> None:
    text = page()
    for name in MODELS:
        assert f"| [`{name}`](#{name}) |" in text
        assert f"\n## {name}\n" in text
    for backbone in BACKBONES:
        assert f"| `{backbone.name}` |" in text


@EACH
def test_model__names_weights_that_can_be_fetched(model: ZooModel) -> None:
    if model.name == "bundled":
        return
    assert is_url(model.weights) or is_hub_name(model.weights)
    if is_hub_name(model.weights):
        assert (HubName.parse(model.weights).file is None) == (model.family == "transformers")
    else:
        assert urlsplit(model.weights).scheme == "https"


def test_model__of_detectron2_has_a_checksum_in_its_name() -> None:
    of_facebook = [model for model in MODELS.values() if "fbaipublicfiles" in model.weights]
    assert len(of_facebook) == 7
    for model in of_facebook:
        _, checksum = split_checksum(model.weights)
        assert checksum is not None
        assert checksum.digits == re.search(r"_([0-9a-f]+)\.pkl$", model.weights)[1]  # type: ignore[index]


@EACH
def test_model__has_a_recipe_and_commands(model: ZooModel) -> None:
    assert (ROOT / "configs" / model.recipe).is_file()
    assert model.name in model.train_command
    assert (model.evaluate_command is not None) == model.takes_coco_classes
    assert dict(fields_of(model))["fine-tune"] == model.train_command


def test_models__have_names_of_one_form() -> None:
    assert all(re.fullmatch(r"[a-z0-9_]+", name) for name in MODELS)
    assert len({model.title for model in MODELS.values()}) == len(MODELS)


def test_find_model__shows_the_nearest_name() -> None:
    assert find_model("mask_dino_r50").mask_ap == 46.3
    with pytest.raises(ConfigError, match=r"`mask_dino_r51` is not a model .* Did you mean `mask_dino_r50`\?"):
        find_model("mask_dino_r51")
