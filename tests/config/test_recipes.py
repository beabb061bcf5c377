"""Recipes by their names in the place of files."""

from pathlib import Path

import pytest

from vispeft.config import config_path
from vispeft.errors import ConfigError


def test_config_path__takes_the_name_of_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert config_path(Path("bundled_lora")).name == "bundled_lora.yaml"
    assert config_path(Path("configs/bundled_lora.yaml")).is_file()


def test_config_path__shows_the_nearest_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"`bundled_lor` is neither .* Did you mean `bundled_lora`\?"):
        config_path(Path("bundled_lor"))
    assert config_path(Path("mine.yaml")) == Path("mine.yaml")
