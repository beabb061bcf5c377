"""Lines of a metrics.jsonl."""

from __future__ import annotations

from pathlib import Path

from vispeft.io.metrics_file import read_metrics


def test_read_metrics__leaves_out_lines_that_are_no_metrics(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "split": "train", "loss": 2.0}\n[]\n{"step": 2}\n\xff\n{"step": 3, "spl')
    assert read_metrics(path) == [{"step": 1, "split": "train", "loss": 2.0}]


def test_read_metrics__is_empty_without_a_file(tmp_path: Path) -> None:
    assert read_metrics(tmp_path / "none.jsonl") == []
