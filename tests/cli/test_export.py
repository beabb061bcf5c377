"""The command that exports a run."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from vispeft.engine import ExportReport, RunDirectory

Command = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize("deltas", ["merged", "in the graph"])
def test_export__says_where_the_deltas_are(
    deltas: str, finished: RunDirectory, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = ExportReport(tmp_path / "model.onnx", deltas, 2**20)
    monkeypatch.setattr("vispeft.engine.export_run", lambda run, out, threshold: report)
    status, out, err = command("export", finished.root, "--out", report.path)
    assert status == 0
    told = " ".join(out.split())
    assert f"1.0 MB, deltas: {deltas}. Its outputs are those of the run." in told
    assert ("not all of them merge" in err) == (deltas == "in the graph")


def test_export__names_the_extra_of_a_missing_package(
    finished: RunDirectory, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    status, _, err = command("export", finished.root, "--out", tmp_path / "model.onnx")
    assert status == 1
    assert "ONNX models need the package `onnx`, which is not installed: pip install 'vispeft[onnx]'." in " ".join(
        err.split()
    )
    assert not any(tmp_path.iterdir())


def test_predict__refuses_a_program_of_torch(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    path.write_bytes(b"")
    status, _, err = command("predict", path, tmp_path, "--out", tmp_path / "out")
    assert status == 1
    assert "must be a run directory or an .onnx file" in " ".join(err.split())
