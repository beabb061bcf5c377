"""The command that inspects the names of a configuration's model: sites."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vispeft.cli.terminal import console, show_table


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
