from __future__ import annotations

import io
import re

import pytest

from vispeft.training.progress import format_bytes, format_seconds, open_progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_open_progress__writes_plain_lines_to_a_file() -> None:
    stream = io.StringIO()
    with open_progress("train", 200, stream=stream, start=39, seconds_between_lines=0) as progress:
        progress.update(40, "loss 3.41  1.2 GB")
    (line,) = stream.getvalue().splitlines()
    assert re.fullmatch(r"train 40/200 \(20 %\)  \S+ steps/s, [\d:]+ left  loss 3\.41  1\.2 GB", line)


def test_open_progress__writes_few_lines_but_always_the_last() -> None:
    stream = io.StringIO()
    with open_progress("train", 50, stream=stream, seconds_between_lines=3600) as progress:
        for done in range(1, 51):
            progress.update(done)
    lines = stream.getvalue().splitlines()
    assert [line.split()[1] for line in lines] == ["1/50", "50/50"]


def test_open_progress__draws_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "160")
    stream = Terminal()
    with open_progress("train", 4, stream=stream) as progress:
        progress.update(2, "loss [1]")
        with progress.paused(), open_progress("evaluate", 3, unit="image", stream=stream) as inner:
            inner.update(3)
        progress.update(4, "loss [2]")
    text = stream.getvalue()
    for part in ("train", "4/4", "evaluate", "3/3", "loss [2]", "left"):
        assert part in text


def test_open_progress__is_silent_in_all_but_the_first_process() -> None:
    stream = io.StringIO()
    with open_progress("train", 4, stream=stream, is_shown=False) as progress, progress.paused():
        progress.update(4)
    assert stream.getvalue() == ""


def test_format_seconds() -> None:
    assert [format_seconds(s) for s in (7.4, 754, 3723)] == ["0:07", "12:34", "1:02:03"]


def test_format_bytes() -> None:
    assert [format_bytes(b) for b in (731 * 2**20, 1.9 * 2**30)] == ["731 MB", "1.9 GB"]
