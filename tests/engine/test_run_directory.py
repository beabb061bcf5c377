"""Names, refusals and contents of run directories."""

import json
from pathlib import Path

import pytest

from vispeft.config import parse_config
from vispeft.engine import RunDirectory, begun_run_directory, new_run_directory
from vispeft.errors import ConfigError, TrainingError


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_new_run_directory__takes_the_first_free_number() -> None:
    assert new_run_directory(None, "a").root == Path("runs/a-1")
    Path("runs/a-1").mkdir(parents=True)
    assert new_run_directory(None, "a").root == Path("runs/a-2")
    assert new_run_directory(None, "b").root == Path("runs/b-1")


def test_new_run_directory__begins_again_where_a_run_ended_before_its_first_checkpoint() -> None:
    run = RunDirectory(Path("out"))
    run.root.mkdir()
    for path in (run.config, run.environment, run.annotations, run.metrics, run.root / ".x.1.partial"):
        path.touch()
    (run.root / "tensorboard").mkdir()
    assert new_run_directory(Path("out"), "a").root == Path("out")
    run.checkpoint.parent.mkdir()
    run.checkpoint.touch()
    with pytest.raises(TrainingError, match="`out` is there already"):
        new_run_directory(Path("out"), "a")


def test_new_run_directory__refuses_what_is_there() -> None:
    Path("out").mkdir()
    assert new_run_directory(Path("out"), "a").root == Path("out")
    Path("out/file").touch()
    with pytest.raises(TrainingError, match="`out` is there already"):
        new_run_directory(Path("out"), "a")


def test_begun_run_directory__takes_the_highest_number() -> None:
    with pytest.raises(TrainingError, match="There is no run"):
        begun_run_directory(None, "a")
    for number in (9, 10):
        Path(f"runs/a-{number}").mkdir(parents=True)
        Path(f"runs/a-{number}/config.yaml").touch()
    assert begun_run_directory(None, "a").root == Path("runs/a-10")
    with pytest.raises(TrainingError, match=r"has no config\.yaml"):
        begun_run_directory(Path("runs"), "a")


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
