"""Commands that show the inside of models: names of a configuration's model, and what runs changed in weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vispeft.cli.terminal import console, show_table

if TYPE_CHECKING:
    from vispeft.engine import Inspection


def sites(
    config: Annotated[
        Path, typer.Argument(help="Configuration file (YAML), or a recipe by its name.", show_default=False)
    ],
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PATTERN] [KEY=VALUE]...",
            help="Site pattern or @role, and overrides by dotted path.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Show the sites that a pattern matches; without a pattern, the roles of the model and the pattern of each.

    Example: vispeft sites configs/bundled_lora.yaml "decoder.layers.*.self_attn.*_proj"
    """
    from vispeft.config import load_config
    from vispeft.engine import list_roles, list_sites

    patterns = [word for word in words or [] if "=" not in word]
    if len(patterns) > 1:
        raise typer.BadParameter(f"give at most one pattern, not {len(patterns)}.")
    loaded = load_config(config, [word for word in words or [] if "=" in word])
    if not patterns:
        roles = list_roles(loaded)
        show_table("Roles", ("role", "pattern", "sites"), [(f"@{r.name}", r.pattern, str(r.num_sites)) for r in roles])
        console().print("A pattern may also name any module or parameter: vispeft sites CONFIG '**' lists all of them.")
        return
    found = list_sites(loaded, patterns[0])
    show_table(
        f"{len(found)} sites",
        ("site", "kind", "shape", "parameters"),
        [(s.name, s.kind, s.shape, f"{s.params:,}") for s in found],
    )


def inspect(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN [OTHER]...",
            help="Run directory, or hf://user/name of a run of the hub, and others to compare with.",
            show_default=False,
        ),
    ],
    json_file: Annotated[
        Path | None, typer.Option("--json", help="File of all results. Default: inspection.json in the run.")
    ] = None,
) -> None:
    """Show what a run changed in the weights: singular values of its updates, overlaps with other runs, rank to choose.

    Example: vispeft inspect runs/bundled_lora-1 runs/bundled_lora-2
    """
    from vispeft.io.hub import is_hub_name

    if json_file is None and is_hub_name(str(runs[0])):
        raise typer.BadParameter("a run of the hub has no directory for its results: name a file by --json.")
    from vispeft.engine import inspect_runs
    from vispeft.errors import DataError
    from vispeft.io.json_files import write_json
    from vispeft.io.run_layout import INSPECTION_FILE
    from vispeft.report import write_report

    found = inspect_runs(runs)
    out = json_file or runs[0] / INSPECTION_FILE
    write_json(out, found.to_dict(), raises=DataError, indent=1)
    _show_inspection(found)
    console().print(f"By site: {out}")
    if json_file is None:
        console().print(f"Report: {write_report(runs[0])}")


def _show_inspection(found: Inspection) -> None:
    """Show the medians by pattern, the reasons for deltas without an update, and the advice."""
    overlaps = [f"overlap with {Path(other).name}" for other in found.others]
    columns = ("weights", "how", "sites", "rank", "effective", "90 %", "norm", "amplified", "in top", *overlaps)
    rows = [
        (
            str(group["pattern"]),
            str(group["how"]),
            str(group["sites"]),
            _number(group["rank"], "{:.0f}"),
            _number(group["effective_rank"], "{:.1f}"),
            _number(group["energy_rank"], "{:.0f}"),
            _number(group["relative_norm"], "{:.3f}"),
            _number(group["amplification"], "{:.1f}"),
            f"{_number(group['share_in_top'], '{:.3f}')} ({_number(group['share_by_chance'], '{:.3f}')})",
            *(_number(group["overlaps"][other], "{:.2f}") for other in found.others),
        )
        for group in found.groups()
    ]
    show_table("Updates of the weights (medians over sites)", columns, rows)
    console().print(
        "effective: effective rank of the update; 90 %: directions that hold 90 % of its squared norm; norm: relative "
        "to the weight; amplified: norm of the update over that of the weight in the same directions; in top: share of "
        "the update in the weight's top directions, in brackets that of a random one."
    )
    for reason, number in found.without.items():
        console().print(f"{number} deltas are no update of a weight: {reason}.")
    for sentence in found.advice():
        console().print(sentence)


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)
