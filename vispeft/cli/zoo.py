"""The command that lists published models: models."""

from __future__ import annotations

from typing import Annotated

import typer

from vispeft.cli.terminal import console, show_table


def models(
    name: Annotated[str | None, typer.Argument(help="Show this model alone, with its commands.")] = None,
) -> None:
    """List published models by the names that model.weights takes, and encoders; or show one model.

    Example: vispeft models mask_dino_r50
    """
    from vispeft.zoo import BACKBONES, MODELS, find_model
    from vispeft.zoo.page import fields_of, millions_of, score_of

    if name is not None:
        for key, value in fields_of(find_model(name)):
            console().print(f"{key:14} {value}")
        return
    rows = [(m.name, m.title, m.licence, millions_of(m.millions), score_of(m)) for m in MODELS.values()]
    show_table(
        "Models (model.weights); mask AP on COCO val2017 by their authors",
        ("name", "model", "licence", "parameters", "mask AP"),
        rows,
    )
    encoders = [(b.name, b.title, b.licence, millions_of(b.millions), ", ".join(b.families)) for b in BACKBONES]
    show_table(
        "Encoders of timm (model.backbone)", ("name", "encoder", "licence", "parameters", "model.name"), encoders
    )
    console().print("More of one: vispeft models NAME")
