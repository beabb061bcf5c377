"""Commands that inspect a configuration before training: plan and sites."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vispeft.cli.run import Overrides, checked_overrides
from vispeft.cli.terminal import console, show_table


def plan(
    config: Annotated[
        Path, typer.Argument(help="Configuration file (YAML), or a recipe by its name.", show_default=False)
    ],
    overrides: Overrides = None,
) -> None:
    """Estimate parameters, memory, FLOPs and file size of a configuration before training, without its weights.

    Example: vispeft plan configs/paper_maskdino_r50_lora.yaml model.image_size=512
    """
    from vispeft.config import load_config
    from vispeft.engine import estimate

    found = estimate(load_config(config, checked_overrides(overrides)))
    percent = 100 / found.total_params
    num_frozen = found.total_params - found.trainable_params
    rows = [
        *(
            (f"trainable: {name}", f"{count:,}", f"{count * percent:.2f} %")
            for name, count in found.trainable_by_method.items()
        ),
        ("trainable in total", f"{found.trainable_params:,}", f"{found.trainable_params * percent:.2f} %"),
        ("frozen", f"{num_frozen:,}", f"{num_frozen * percent:.2f} %"),
        ("total", f"{found.total_params:,}", "100 %"),
    ]
    show_table(f"{found.model}, {found.num_classes} classes", ("parameters", "count", "share"), rows)
    costs = [
        ("adapter file", _size(found.adapter_bytes)),
        ("weights in memory", _size(found.weight_bytes)),
        ("gradients and optimizer", _size(found.optimizer_bytes)),
        (f"kept for backward, {found.batch_size} images of {found.image_size} px", _size(found.activation_bytes)),
        ("memory for a training step, estimated", _size(found.step_bytes)),
        ("forward pass of one image", f"{found.forward_flops / 1e9:.1f} GFLOPs"),
    ]
    show_table("Costs", ("cost", "estimate"), costs)


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


def _size(count: int) -> str:
    return f"{count / 2**20:.1f} MB" if count < 2**30 else f"{count / 2**30:.2f} GB"
