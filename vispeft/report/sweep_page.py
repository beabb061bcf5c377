"""Content of the page of a sweep. The layout is in `templates/`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vispeft.io.run_layout import REPORT_FILE
from vispeft.report.formats import NOTHING, byte_size, count, defined, duration, figure, formatted
from vispeft.report.page import Cell, Fact, Interval, link_to, span_of, write_page
from vispeft.report.points import Point, front_of, points_of, run_page_of
from vispeft.report.sweep_charts import colours_of, curve_charts, front_charts, parameter_charts
from vispeft.report.sweep_files import AP, SweepFiles, Trial, read_sweep
from vispeft.report.sweep_text import cheapest_of, conclusion, equals_of, next_steps


@dataclass(frozen=True)
class Row:
    """A row of a table. key: of its configuration; marks: words beside its first cell"""

    key: str
    cells: Sequence[Cell]
    marks: Sequence[str] = ()
    state: str = ""


@dataclass(frozen=True)
class Tip:
    """Facts of a configuration, shown when the pointer is over it."""

    key: str
    title: str
    facts: Sequence[Fact]


_SCORES = ("configuration", "seeds", "mask AP", "interval")
_DIFFERENCES = ("less the best", "p")
_COSTS = ("trained", "time", "memory", "file")
TRIAL_COLUMNS = ("trial", "configuration", "seed", "state", "mask AP", "AP50", "box AP", "trained", "time", "memory")


def write_sweep_report(sweep_dir: Path) -> Path:
    """Write `report.html` into a sweep's directory, from its files. Returns the page's path.

    The page has some 5 kB for each trial: curves of at most 60 points, and a row; a thousand trials are about 5 MB.
    """
    page = sweep_dir / REPORT_FILE
    sweep = read_sweep(sweep_dir)
    points = points_of(sweep)
    colours = colours_of(points)
    curves = curve_charts(sweep, points, colours)
    names = {trial.number: point for point in points for trial in sweep.trials if trial.labels == point.labels}
    return write_page(
        page,
        "sweep.html.j2",
        title=str(sweep.results.get("name", sweep_dir.name)),
        kind="sweep",
        conclusion=conclusion(sweep, points),
        facts=_facts(sweep, points),
        fronts=front_charts(points, colours, page),
        parameters=parameter_charts(points, page),
        curves=curves,
        dashed=any(line["is_dashed"] for chart in curves for line in chart.lines),
        verdict=sweep.verdict,
        configurations=_configuration_rows(sweep, points, page),
        configuration_columns=(*_SCORES, *(_DIFFERENCES if sweep.verdict else ()), *_COSTS),
        trials=[_trial_row(trial, names[trial.number], page) for trial in sweep.trials],
        trial_columns=TRIAL_COLUMNS,
        lost=[
            _lost(trial, names[trial.number], sweep) for trial in sweep.trials if trial.state in ("failed", "pruned")
        ],
        tips=[_tip(point, sweep) for point in points],
        steps=next_steps(sweep, points),
        config=sweep.sweep_text,
    )


def _facts(sweep: SweepFiles, points: Sequence[Point]) -> list[Fact]:
    """Return the progress of the sweep and its best results."""
    equals = equals_of(sweep, points)
    found = []
    if equals:
        best, cheapest = equals[0], cheapest_of(equals) or equals[0]
        interval = best.interval
        spread = "" if interval is None else f", {figure(interval.low)} to {figure(interval.high)}"
        found = [Fact("highest mask AP", figure(best.ap), best.title + spread)]
        if sweep.verdict is not None and len(equals) > 1:
            total = sum(one.is_complete for one in points)
            trained = f"{count(cheapest.mean('trainable_params'))} trained"
            found.append(Fact("not distinguishable", f"{len(equals)} of {total}", "from the best, itself included"))
            found.append(Fact("cheapest of these", cheapest.title, trained))
    done, total = sweep.count("complete"), sweep.results.get("num_runs", len(sweep.trials))
    states = [
        f"{number} {state}" for state in ("failed", "pruned", "running", "waiting") if (number := sweep.count(state))
    ]
    objectives = sweep.results.get("objectives", {})
    seconds = sum(trial.figures.get("train_seconds", 0.0) for trial in sweep.trials)
    return [
        *found,
        Fact("trials complete", f"{done} of {total}", ", ".join(states)),
        Fact("training time", duration(seconds), "of all trials"),
        Fact(
            "search", str(sweep.results.get("sampler", NOTHING)), ", ".join(objectives) if len(objectives) > 1 else ""
        ),
    ]


def _configuration_rows(sweep: SweepFiles, points: Sequence[Point], page: Path) -> list[Row]:
    """Return a row for every configuration with a complete trial, the best first."""
    equals = equals_of(sweep, points)
    cheapest = cheapest_of(equals) if len(equals) > 1 else None
    front = front_of(points, "trainable_params")
    rows = []
    shown = sorted((one for one in points if one.is_complete), key=lambda one: -(one.ap or 0.0))
    ends = [end for one in shown if one.interval for end in (one.interval.low, one.interval.high)]
    for point in shown:
        marks = [
            text
            for text, holds in (
                ("best", bool(equals) and point is equals[0]),
                ("as good", point in equals[1:]),
                ("cheapest of these", point is cheapest),
                ("front", point in front),
            )
            if holds
        ]
        rows.append(Row(point.key, _configuration_cells(point, sweep, page, ends), marks))
    return rows


def _configuration_cells(point: Point, sweep: SweepFiles, page: Path, ends: Sequence[float]) -> list[Cell]:
    """Return the cells of a configuration. ends: of all intervals, which are drawn on one scale"""
    target = run_page_of(point.nearest)
    interval = point.interval
    spread = NOTHING if interval is None else f"{figure(interval.low)} to {figure(interval.high)}"
    return [
        Cell(point.title, point.title, link_to(target, page) if target else ""),
        Cell(str(len(point.trials)), len(point.trials)),
        Cell(figure(point.ap), point.ap),
        Cell(spread, None if interval is None else interval.low, span=span_of(interval, ends)),
        *(_difference_cells(sweep.verdict.differences.get(point.number)) if sweep.verdict else ()),
        *_cost_cells(point.mean("trainable_params"), point.mean("train_seconds"), point.mean("peak_memory_bytes")),
        Cell(byte_size(point.mean("adapter_bytes")), point.mean("adapter_bytes")),
    ]


def _difference_cells(difference: tuple[Interval, float] | None) -> list[Cell]:
    """Return the difference to the best with its interval, and its p value; dashes for the best or if not compared."""
    if difference is None:
        return [Cell(NOTHING), Cell(NOTHING)]
    less, p_value = difference
    text = f"{less.value:+.3f} [{less.low:+.3f}, {less.high:+.3f}]"
    return [Cell(text, less.value), Cell(f"{p_value:.3f}", p_value)]


def _trial_row(trial: Trial, point: Point, page: Path) -> Row:
    target = run_page_of(trial)
    figures = trial.figures
    return Row(
        point.key,
        [
            Cell(str(trial.number), trial.number, link_to(target, page) if target else ""),
            Cell(point.title, point.title),
            Cell(str(trial.seed), trial.seed),
            Cell(trial.state, trial.state),
            *(Cell(figure(figures.get(name)), defined(figures.get(name))) for name in (AP, "segm/AP50", "bbox/AP")),
            *_cost_cells(*(figures.get(name) for name in ("trainable_params", "train_seconds", "peak_memory_bytes"))),
        ],
        state=trial.state,
    )


def _cost_cells(params: float | None, seconds: float | None, memory: float | None) -> list[Cell]:
    return [Cell(count(params), params), Cell(duration(seconds), seconds), Cell(byte_size(memory), memory)]


def _lost(trial: Trial, point: Point, sweep: SweepFiles) -> tuple[Trial, str, str]:
    """Return a failed or pruned trial with the title of its configuration and the address of its log."""
    log = Path("logs") / f"{trial.number:04d}.txt"
    return trial, point.title, log.as_posix() if (sweep.path / log).is_file() else ""


def _tip(point: Point, sweep: SweepFiles) -> Tip:
    interval = point.interval
    spread = "" if interval is None else f" ({figure(interval.low)} to {figure(interval.high)})"
    seeds = ", ".join(figure(trial.figures.get(AP)) for trial in point.trials) if len(point.trials) > 1 else ""
    told = [
        Fact("mask AP", f"{figure(point.ap)}{spread}"),
        Fact("by seed", seeds),
        Fact("trained", count(point.mean("trainable_params"))),
        Fact("of all", formatted(point.mean("trainable_percent"), "{:.2f} %")),
        Fact("time", duration(point.mean("train_seconds"))),
        Fact("memory", byte_size(point.mean("peak_memory_bytes"))),
        *(Fact(name, str(value)) for name, value in point.labels.items() if str(value) != point.title),
    ]
    return Tip(point.key, point.title, [fact for fact in told if fact.value not in ("", NOTHING)])
