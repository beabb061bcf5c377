"""The command `evaluate --analysis`."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from vispeft.engine import RunDirectory

Command = Callable[..., tuple[int, str, str]]


def test_evaluate__analysis_of_any_results_file(finished: RunDirectory, command: Command, tmp_path: Path) -> None:
    path = tmp_path / "analysis.json"
    files = ("--predictions", finished.predictions, "--annotations", finished.annotations)
    status, out, err = command("evaluate", *files, "--analysis", "--out", path)
    assert status == 0, err
    assert "Errors at IoU 0.5" in out
    assert "boundary AP" in out
    analysis, summary = json.loads(path.read_text()), json.loads(finished.summary.read_text())
    assert analysis["metrics"] == summary["segm"]
    assert {one["name"]: one["ap"] for one in analysis["categories"]} == summary["per_category"]
    assert len(analysis["images"]) == 3


def test_evaluate__analysis_of_a_run_is_written_beside_its_summary(
    finished: RunDirectory, command: Command, tmp_path: Path
) -> None:
    # other tests have the run as well
    root = shutil.copytree(finished.root, tmp_path / "run")
    status, _, err = command("evaluate", root, "--analysis")
    assert status == 0, err
    assert json.loads((root / "analysis.json").read_text())["kind"] == "segm"
    assert (root / "report.html").stat().st_mtime_ns > (root / "analysis.json").stat().st_mtime_ns


@pytest.mark.parametrize(
    "words",
    [
        ["--analysis"],
        ["run", "eval.max_detections=1", "--analysis"],
        ["run", "--out", "x.json"],
        ["--predictions", "x.json", "--analysis"],
    ],
    ids=" ".join,
)
def test_evaluate__analysis_wrong_usage_ends_with_2(words: list[str], command: Command) -> None:
    assert command("evaluate", *words)[0] == 2
