"""Contents of run directories."""

import json
from pathlib import Path

import pytest

from vispeft.config import parse_config
from vispeft.engine import RunDirectory
from vispeft.errors import ConfigError


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_begin__writes_what_is_known() -> None:
    config = parse_config({"train": {"lr": 0.25}})
    directory = RunDirectory(Path("run"))
    directory.begin(config, {"seed": 1}, {"images": []})
    assert directory.load_config() == config
    assert directory.load_config(["train.lr=0.5"]).train.lr == 0.5
    assert json.loads(directory.environment.read_text()) == {"seed": 1}
    assert json.loads(directory.annotations.read_text()) == {"images": []}


def test_check_continues__names_every_key_that_would_make_another_run() -> None:
    directory = RunDirectory(Path("run"))
    directory.begin(parse_config({"peft": {"train": ["a"]}}), {}, {})
    directory.check_continues(parse_config({"peft": {"train": ["a"]}, "train": {"steps": 9, "workers": 3}}))
    with pytest.raises(ConfigError) as error:
        directory.check_continues(parse_config({"peft": {"train": ["b"]}, "train": {"lr": 0.5}}))
    assert "`peft.train` was ['a'] and is ['b']" in str(error.value)
    assert "`train.lr` was 0.001 and is 0.5" in str(error.value)


def test_load_config__names_a_folder_that_is_no_run() -> None:
    with pytest.raises(ConfigError, match="must be a run directory"):
        RunDirectory(Path("nothing")).load_config()
