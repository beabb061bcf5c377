"""Progress of long work: a bar on a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text


class ProgressReport(Protocol):
    """Receiver of the progress of work."""

    def update(self, done: int, note: str = "") -> None:
        """Report that `done` units of the total are done; `note` is shown beside the count."""

    def paused(self) -> contextlib.AbstractContextManager[None]:
        """Return a context in which nothing is drawn, so that other work can show its own progress."""


@contextlib.contextmanager
def open_progress(
    description: str,
    total: int,
    *,
    unit: str = "step",
    start: int = 0,
    is_shown: bool = True,
    stream: TextIO | None = None,
    seconds_between_lines: float = 15.0,
) -> Iterator[ProgressReport]:
    """Show the progress of work of `total` units, of which `start` were done before.

    is_shown: False in every process but the first
    stream: standard error unless given
    """
    stream = sys.stderr if stream is None else stream
    pace = Pace(total, start, unit)
    if not is_shown:
        yield _NoReport()
    elif stream.isatty():
        with _bar(description, pace, stream) as bar:
            yield bar
    else:
        lines = _Lines(description, pace, stream, seconds_between_lines)
        try:
            yield lines
        finally:
            lines.finish()


class Pace:
    """Rate and time left, from the units done since the start. Paused time does not count."""

    def __init__(self, total: int, start: int, unit: str) -> None:
        self.total = total
        self.unit = unit
        self.done = start
        self._start = start
        self._began = time.monotonic()

    def leave_out(self, seconds: float) -> None:
        """Exclude some past seconds from the rate."""
        self._began += seconds

    def describe(self) -> str:
        """Return rate and time left, such as "2.31 steps/s, 1:09 left"; empty before the first unit."""
        seconds = time.monotonic() - self._began
        done = self.done - self._start
        if done < 1 or seconds <= 0:
            return ""
        rate = done / seconds
        speed = f"{rate:.2f} {self.unit}s/s" if rate >= 0.1 else f"{1 / rate:.1f} s/{self.unit}"
        return f"{speed}, {format_seconds((self.total - self.done) / rate)} left"


def format_seconds(seconds: float) -> str:
    """Return a duration such as 0:07, 12:34 or 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def format_bytes(count: float) -> str:
    """Return a size such as 731 MB or 1.9 GB (powers of 1024)."""
    megabytes = count / 2**20
    return f"{megabytes / 1024:.1f} GB" if megabytes >= 1000 else f"{megabytes:.0f} MB"


class _NoReport:
    def update(self, done: int, note: str = "") -> None:
        return

    def paused(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


class _Lines:
    """A line at the first update, then at most one every `seconds_between`, and one at the end."""

    def __init__(self, description: str, pace: Pace, stream: TextIO, seconds_between: float) -> None:
        self._description = description
        self._pace = pace
        self._stream = stream
        self._seconds_between = seconds_between
        self._note = ""
        self._last_time = float("-inf")
        self._last_done: int | None = None

    def update(self, done: int, note: str = "") -> None:
        self._pace.done = done
        self._note = note
        if time.monotonic() - self._last_time >= self._seconds_between:
            self._print()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        began = time.monotonic()
        yield
        self._pace.leave_out(time.monotonic() - began)

    def finish(self) -> None:
        if self._pace.done != self._last_done and self._last_time > float("-inf"):
            self._print()

    def _print(self) -> None:
        pace = self._pace
        share = 100 * pace.done / max(pace.total, 1)
        parts = [f"{self._description} {pace.done}/{pace.total} ({share:.0f} %)", pace.describe(), self._note]
        print("  ".join(part for part in parts if part), file=self._stream, flush=True)
        self._last_time = time.monotonic()
        self._last_done = pace.done


class _PaceColumn(ProgressColumn):
    def __init__(self, pace: Pace) -> None:
        super().__init__()
        self._pace = pace

    def render(self, task: Task) -> Text:
        return Text(self._pace.describe(), style="progress.remaining")


class _Bar:
    def __init__(self, progress: Progress, task: Task, pace: Pace) -> None:
        self._progress = progress
        self._task = task
        self._pace = pace

    def update(self, done: int, note: str = "") -> None:
        self._pace.done = done
        self._progress.update(self._task.id, completed=done, note=note)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        began = time.monotonic()
        self._progress.stop()
        try:
            yield
        finally:
            self._pace.leave_out(time.monotonic() - began)
            self._progress.start()


@contextlib.contextmanager
def _bar(description: str, pace: Pace, stream: TextIO) -> Iterator[_Bar]:
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.completed}/{task.total}"),
        _PaceColumn(pace),
        TextColumn("{task.fields[note]}", markup=False),
        console=Console(file=stream),
        refresh_per_second=4,
    )
    with progress:
        task_id = progress.add_task(description, total=pace.total, completed=pace.done, note="")
        yield _Bar(progress, progress.tasks[progress.task_ids.index(task_id)], pace)
