"""Report of `bench_kernels.py`: a table, the cases in which this project is slower, and a plot."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from bench_kernels_measure import PASSES, Ceilings, Measurement

HEADER = (
    f"  {'':20}{'forward ms':>11}{'both ms':>9}{'quartiles':>17}{'graph':>9}{'ratio':>7}{'graph':>7}{'peak MB':>9}"
    f"{'kept MB':>9}{'of copy':>8}{'of GEMM':>8}{'error':>9}"
)


def table(measurements: Sequence[Measurement], ceilings: dict[str, Ceilings]) -> str:
    """Return a table with one block per case. Ratios are of forward and backward together, to the case's baseline."""
    lines = [
        f"ceilings in {dtype}: copy {one.gigabytes_per_s:,.0f} GB/s both ways, product {one.teraflops:,.2f} TFLOP/s"
        for dtype, one in ceilings.items()
    ]
    lines += ["", HEADER]
    for (kernel, case, dtype), group in groupby(measurements, lambda one: (one.kernel, one.case, one.dtype)):
        lines += ["", f"{kernel}: {case}, {dtype}"]
        rows = list(group)
        for entry in dict.fromkeys(one.entry for one in rows):
            lines.append(_row(entry, [one for one in rows if one.entry == entry]))
    return "\n".join(lines)


def slower_cases(measurements: Sequence[Measurement]) -> str:
    """Return each case, pass and timing in which the best of our implementations is slower than the best other one."""
    slower = []
    for timing in ("median_ms", "graph_ms"):
        for (kernel, case, dtype), group in groupby(measurements, lambda one: (one.kernel, one.case, one.dtype)):
            rows = [one for one in group if not one.failure and not one.is_limit and getattr(one, timing) is not None]
            for passes in PASSES:
                ours = [(getattr(one, timing), one.entry) for one in rows if one.passes == passes and one.is_ours]
                theirs = [(getattr(one, timing), one.entry) for one in rows if one.passes == passes and not one.is_ours]
                if ours and theirs and min(ours) > min(theirs):
                    how = " in a graph" if timing == "graph_ms" else ""
                    ratio = min(ours)[0] / min(theirs)[0]
                    slower.append(
                        f"  {kernel}: {case}, {dtype}, {passes}{how}: {min(ours)[1]} takes {ratio:.2f} x "
                        f"{min(theirs)[1]}"
                    )
    return "slower than another implementation:\n" + ("\n".join(slower) if slower else "  none")


def plot(measurements: Sequence[Measurement], path: Path, title: str) -> None:
    """Plot the time of forward and backward relative to the baseline, with one panel per kernel."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = [one for one in measurements if one.passes == PASSES[1] and _relative(one) is not None]
    kernels = list(dict.fromkeys(one.kernel for one in shown))
    heights = [1 + sum(one.kernel == kernel for one in shown) * 0.22 for kernel in kernels]
    figure, axes = plt.subplots(
        len(kernels), figsize=(11, sum(heights)), height_ratios=heights, squeeze=False, layout="constrained"
    )
    names = list(dict.fromkeys(one.entry for one in shown))
    colours = {name: f"C{index % 10}" for index, name in enumerate(names)}
    for kernel, panel in zip(kernels, axes[:, 0], strict=True):
        bars = [one for one in shown if one.kernel == kernel]
        place, places, ticks = 0.0, [], []
        for (case, dtype), group in groupby(bars, lambda one: (one.case, one.dtype)):
            first = place
            for one in group:
                panel.barh(place, _relative(one), color=colours[one.entry], height=0.9)
                panel.text(_relative(one), place, f" {one.entry} {_relative(one):.2f}", va="center", fontsize=7)
                place += 1
            places.append((first + place - 1) / 2)
            ticks.append(f"{case}\n{dtype}")
            place += 1
        panel.set_yticks(places, ticks, fontsize=7)
        panel.invert_yaxis()
        panel.margins(x=0.15, y=0.02)
        panel.set_title(kernel, fontsize=9)
    figure.supxlabel("time of forward and backward, relative to the baseline", fontsize=8)
    figure.suptitle(title, fontsize=9)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _relative(one: Measurement) -> float | None:
    """Return the ratio in CUDA graphs if it was measured, because it is free of launch overhead."""
    return one.graph_ratio if one.graph_ratio is not None else one.ratio


def _row(entry: str, rows: list[Measurement]) -> str:
    failure = next((one.failure for one in rows if one.failure), "")
    if failure:
        return f"  {entry:20}{failure}"
    forward, both = (next(one for one in rows if one.passes == passes) for passes in PASSES)
    assert both.quartiles_ms is not None
    low, high = both.quartiles_ms
    return (
        f"  {entry:20}{_of(forward.median_ms, '.4f'):>11}{_of(both.median_ms, '.4f'):>9}{f'{low:.4f}-{high:.4f}':>17}"
        f"{_of(both.graph_ms, '.4f'):>9}{_of(both.ratio, '.2f'):>7}{_of(both.graph_ratio, '.2f'):>7}"
        f"{_of(both.peak_mb, '.1f'):>9}{_of(both.kept_mb, '.2f'):>9}{_of(both.bandwidth_share, '.0%'):>8}"
        f"{_of(both.rate_share, '.0%'):>8}{_of(both.error, '.1e'):>9}"
    )


def _of(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
