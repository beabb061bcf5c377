"""The command `evaluate --depth`."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from vispeft.engine import RunDirectory

Command = Callable[..., tuple[int, str, str]]


def test_evaluate__depth_of_any_results_file(finished: RunDirectory, command: Command, tmp_path: Path) -> None:
    path = tmp_path / "close.json"
    files = ("--predictions", finished.predictions, "--annotations", finished.annotations)
    status, out, err = command("evaluate", *files, "--depth", "--out", path)
    assert status == 0, err
    assert "Errors at IoU 0.5" in out
    assert "boundary AP" in out
    depth, summary = json.loads(path.read_text()), json.loads(finished.summary.read_text())
    assert depth["figures"] == summary["segm"]
    assert {one["name"]: one["ap"] for one in depth["categories"]} == summary["per_category"]
    assert len(depth["images"]) == 3


def test_evaluate__depth_of_a_run_stands_beside_its_summary(finished: RunDirectory, command: Command) -> None:
    status, _, err = command("evaluate", finished.root, "--depth")
    assert status == 0, err
    assert json.loads((finished.root / "depth.json").read_text())["kind"] == "segm"
    page = finished.root / "report.html"
    assert page.stat().st_mtime_ns > (finished.root / "depth.json").stat().st_mtime_ns


@pytest.mark.parametrize(
    "words",
    [
        ["--depth"],
        ["run", "eval.max_detections=1", "--depth"],
        ["run", "--out", "x.json"],
        ["--predictions", "x.json", "--depth"],
    ],
    ids=" ".join,
)
def test_evaluate__depth_wrong_usage_ends_with_2(words: list[str], command: Command) -> None:
    assert command("evaluate", *words)[0] == 2
