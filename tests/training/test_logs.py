from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vispeft.errors import TrainingError
from vispeft.io.metrics_file import read_metrics
from vispeft.training.logs import RunLog


def test_write__each_line_is_on_disk_at_once(tmp_path: Path) -> None:
    with RunLog(tmp_path, use_tensorboard=False) as log:
        log.write(40, "train", {"loss": 3.5})
        assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 40, "split": "train", "loss": 3.5}\n'
        log.write(40, "val", {"segm/AP": 0.25})
        assert read_metrics(log.path)[1] == {"step": 40, "split": "val", "segm/AP": 0.25}


def test_write__writes_non_finite_values_as_null(tmp_path: Path) -> None:
    with RunLog(tmp_path, use_tensorboard=False) as log:
        log.write(1, "train", {"loss": float("nan"), "norm": float("inf")})
    line = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(line, parse_constant=lambda name: name) == {
        "step": 1,
        "split": "train",
        "loss": None,
        "norm": None,
    }


def test_run_log__drops_lines_that_will_be_written_again(tmp_path: Path) -> None:
    with RunLog(tmp_path, use_tensorboard=False) as log:
        for step in (1, 2, 3):
            log.write(step, "train", {"loss": float(step)})
    path = tmp_path / "metrics.jsonl"
    # a crash in the middle of a line
    path.write_text(path.read_text() + '{"step": 4, "spl')
    with RunLog(tmp_path, start_step=2, use_tensorboard=False) as log:
        log.write(3, "train", {"loss": 30.0})
    assert [(line["step"], line["loss"]) for line in read_metrics(path)] == [(1, 1.0), (2, 2.0), (3, 30.0)]
    RunLog(tmp_path, use_tensorboard=False).close()
    assert path.read_text() == ""


def test_run_log__writes_for_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with RunLog(tmp_path) as log:
        log.write(3, "val", {"segm/AP": 0.5})
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("val/segm/AP")] == [(3, 0.5)]


def test_run_log__writes_nothing_when_disabled(tmp_path: Path) -> None:
    with RunLog(tmp_path / "run", is_enabled=False) as log:
        log.write(1, "train", {"loss": 1.0})
    assert not (tmp_path / "run").exists()


def test_run_log__drops_an_evaluation_that_will_be_done_again(tmp_path: Path) -> None:
    with RunLog(tmp_path, use_tensorboard=False) as log:
        for step in (1, 2):
            log.write(step, "train", {"loss": 1.0})
            log.write(step, "val", {"segm/AP": 0.5})
    RunLog(tmp_path, start_step=2, repeats_evaluation=True, use_tensorboard=False).close()
    found = [(line["step"], line["split"]) for line in read_metrics(tmp_path / "metrics.jsonl")]
    assert found == [(1, "train"), (1, "val"), (2, "train")]


def test_write__names_the_file_on_a_full_disk(tmp_path: Path, files_of_at_most: Callable[..., Any]) -> None:
    log = RunLog(tmp_path, use_tensorboard=False)
    log.write(1, "train", {"loss": 1.0})
    with files_of_at_most(64), pytest.raises(TrainingError) as error:
        log.write(2, "train", {"loss": 1.0})
    assert str(error.value).startswith(f"`{tmp_path / 'metrics.jsonl'}` cannot be written: ")
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [1]


def test_run_log__drops_lines_without_step_and_split(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "split": "train", "loss": 1.0}\n{"note": 2}\n[3]\n{"step": 2, "spl\xff')
    RunLog(tmp_path, start_step=2, use_tensorboard=False).close()
    assert read_metrics(path) == [{"step": 1, "split": "train", "loss": 1.0}]
