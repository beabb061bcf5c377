"""The command that writes a run as an ONNX model or a program of torch.export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vispeft.cli.terminal import console, say


def export(
    run: Annotated[
        Path, typer.Argument(help="Run directory, or hf://user/name of a run of the hub.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="File to write: .onnx, or .pt2 for torch.export.load.", show_default=False)],
    threshold: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Lowest score of an instance, written as metadata.")
    ] = 0.5,
) -> None:
    """Write a run as one model file in standard operators, for batches of any number of images.

    Deltas are merged if their methods can be; others stay in the graph. The file is kept if its outputs are those of
    the run. Example: vispeft export runs/bundled_lora-1 --out model.onnx
    """
    from vispeft.engine import export_run, load_run
    from vispeft.engine.export import IN_GRAPH

    report = export_run(load_run(run), out, threshold=threshold)
    if report.deltas == IN_GRAPH:
        say("note: the deltas are operators of the graph, since not all of them merge: `vispeft merge` names those.")
    use = f"vispeft predict {report.path} IMAGES --out DIR" if out.suffix == ".onnx" else "torch.export.load"
    console().print(
        f"{report.path}: {report.num_bytes / 2**20:.1f} MB, deltas: {report.deltas}. Its outputs are those of the run. "
        f"Use it by {use}"
    )
