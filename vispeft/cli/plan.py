"""The command that estimates the cost of a configuration before training, and proposes ones that fit a budget."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vispeft.cli.outputs import check_output, write_output
from vispeft.cli.run import Overrides, checked_overrides
from vispeft.cli.terminal import console, show_table

if TYPE_CHECKING:
    from vispeft.engine import Estimate, Limits, Proposals


def plan(
    config: Annotated[
        Path, typer.Argument(help="Configuration file (YAML), or a recipe by its name.", show_default=False)
    ],
    overrides: Overrides = None,
    budget: Annotated[
        str | None, typer.Option(help="Most trained parameters, such as 1% or 200k: propose configurations that fit.")
    ] = None,
    memory: Annotated[
        str | None, typer.Option(help="Most memory of training, such as 8GB: propose configurations that fit.")
    ] = None,
    time: Annotated[
        str | None,
        typer.Option(help="Longest training, such as 20min: propose configurations that fit. Times one step here."),
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the result to this file.")] = None,
) -> None:
    """Estimate parameters, memory, FLOPs and file size of a configuration before training, without its weights.

    Example: vispeft plan configs/bundled_lora.yaml --budget 3% --memory 4GB
    """
    from vispeft.config import load_config
    from vispeft.engine import estimate, propose
    from vispeft.engine.estimation.limits import parse_limits

    check_output("--json", json_file, [config])
    limits = parse_limits(budget, memory, time)
    loaded = load_config(config, checked_overrides(overrides))
    if limits.are_empty:
        found = estimate(loaded)
        _show_estimate(found)
        content = found.to_dict()
    else:
        proposals = propose(loaded, limits)
        _show_proposals(config, overrides or [], limits, proposals)
        content = proposals.to_dict()
    write_output(json_file, content)


def size_text(count: float) -> str:
    """Return a number of bytes as text."""
    return f"{count / 2**20:.1f} MB" if count < 2**30 else f"{count / 2**30:.2f} GB"


def _show_estimate(found: Estimate) -> None:
    """Show the tables of parameters and of costs."""
    methods = list(found.trainable_by_method)
    rows = [
        (
            region.name,
            *(f"{region.trained[name]:,}" if name in region.trained else "" for name in methods),
            f"{region.total - sum(region.trained.values()):,}",
            f"{region.total:,}",
        )
        for region in found.regions
    ]
    rows += [
        (
            "total",
            *(f"{count:,}" for count in found.trainable_by_method.values()),
            f"{found.total_params - found.trainable_params:,}",
            f"{found.total_params:,}",
        ),
    ]
    columns = ("parameters", *(f"trained: {name}" for name in methods), "frozen", "all")
    show_table(f"{found.model}, {found.num_classes} classes", columns, rows)
    console().print(f"Trained: {found.trainable_params:,} of {found.total_params:,}, {found.trainable_percent:.2f} %.")
    show_table("Costs", ("cost", "estimate"), _costs(found))


def _costs(found: Estimate) -> list[tuple[str, str]]:
    batch = f"{found.batch_size} images of {found.image_size} px, {found.num_objects} objects each"
    average = [("moving average of the trained weights", size_text(found.average_bytes))] if found.average_bytes else []
    return [
        ("adapter file", size_text(found.adapter_bytes)),
        ("frozen weights", size_text(found.frozen_bytes)),
        ("trained weights", size_text(found.weight_bytes - found.frozen_bytes)),
        ("gradients", size_text(found.gradient_bytes)),
        ("optimizer state", size_text(found.optimizer_bytes)),
        *average,
        (f"kept for backward, {batch}", size_text(found.activation_bytes)),
        ("peak of a training step: all tensors", size_text(found.peak_bytes)),
        ("the same with Python and its libraries", size_text(found.process_bytes)),
        ("first block that needs a gradient", found.first_block or "none"),
        ("inference of one image", f"{found.forward_flops / 1e9:.1f} GFLOPs"),
        ("training step: forward pass", f"{found.step_forward_flops / 1e9:.1f} GFLOPs"),
        ("training step: backward pass", f"{found.step_backward_flops / 1e9:.1f} GFLOPs"),
    ]


def _show_proposals(config: Path, overrides: list[str], limits: Limits, proposals: Proposals) -> None:
    """Show the configurations that fit, best first, each with its reason and its overrides."""
    if proposals.timing:
        console().print(proposals.timing)
    rows = [
        (
            f"{number}. {each.name}",
            f"{each.estimate.trainable_params:,} ({each.estimate.trainable_percent:.2f} %)",
            size_text(each.estimate.process_bytes),
            "" if each.seconds is None else f"{each.seconds / 60:.1f} min",
            f"{each.estimate.step_flops / 1e9:.0f}",
        )
        for number, each in enumerate(proposals.found, start=1)
    ]
    show_table(f"Fit {limits}, best first", ("configuration", "trained", "memory", "time", "GFLOPs a step"), rows)
    for number, each in enumerate(proposals.found, start=1):
        console().print(f"{number}. {each.reason}")
        console().print(f"   {shlex.join(['vispeft', 'train', str(config), *overrides, *each.overrides])}")
