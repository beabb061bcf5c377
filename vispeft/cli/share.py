"""The command that shares a run on the hub: push."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vispeft.cli.terminal import console


def push(
    run: Annotated[Path, typer.Argument(help="Run directory.", show_default=False)],
    repository: Annotated[str, typer.Argument(metavar="USER/NAME", help="Repository.", show_default=False)],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    token: Annotated[
        str | None, typer.Option(help="Token of the hub. Default: HF_TOKEN, or that of a login.", show_default=False)
    ] = None,
    licence: Annotated[
        str | None, typer.Option("--license", help="Licence of the card, such as mit. Default: none.")
    ] = None,
    dataset: Annotated[
        list[str] | None, typer.Option(help="Data set of the hub that the run was trained on. May be given again.")
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="Where others find the base of a run over a file: hf://user/name, https://..., or a model name."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write the files to --out, and upload nothing.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder of --dry-run. Default: hub in the run directory.")] = None,
) -> None:
    """Share a run on the Hugging Face hub: adapter file, configuration, summary, class names and a model card.

    Example: vispeft push runs/bundled_lora-1 user/name --private
    """
    from vispeft.engine.push import ShareOptions, push_run, write_shared

    if out is not None and not dry_run:
        raise typer.BadParameter("--out is the folder of --dry-run: give --dry-run too.")
    options = ShareOptions(repository, licence=licence, datasets=tuple(dataset or ()), weights=weights)
    if dry_run:
        folder = write_shared(run, options, out or run / "hub")
        console().print(f"Files as they would be uploaded: {folder}")
        return
    console().print(push_run(run, options, is_private=private, token=token))
    console().print(f"Predict with it: vispeft predict hf://{options.name.repository} photos --out predicted")
