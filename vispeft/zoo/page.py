"""Text about published models, for the terminal and for docs/zoo.md."""

from __future__ import annotations

from collections.abc import Sequence

from vispeft.zoo.entry import Backbone, ZooModel
from vispeft.zoo.models import BACKBONES, MODELS

_HEAD = """# Published models

`vispeft models` lists the models below, `vispeft models NAME` shows one. This page is written from the same data by
`python tools/zoo_page.py`.

A name in the first column is a value of `model.weights`: family, encoder and sizes follow from it, and the weights are
fetched on first use. `vispeft predict NAME photos --out predicted` and `vispeft evaluate NAME` take it in the place of
a run where the classes are COCO's 80. The scores are mask AP on COCO val2017 in percent, as their authors give them.
The authors of Mask DINO and Mask2Former resize the shorter side of an image; vispeft fits the longer one, so that
scores may differ a little. None of them was measured again here. "Not confirmed" marks a fact without a source that we
could read.

[The guide](guide.md#from-a-published-model) describes downloads, caches and offline mode.
"""

_BACKBONES_HEAD = """## Encoders

Any model of [timm](https://github.com/huggingface/pytorch-image-models) can be `model.backbone`; with `model.weights:
pretrained` its weights are timm's. Plain ViTs suit every family, others Mask DINO and Mask2Former. Parts behind the
encoder are new then: `configs/vit_b_lora.yaml` is a recipe.
"""


def fields_of(model: ZooModel) -> list[tuple[str, str]]:
    """Return names and values of all that is known of a model, as text."""
    rows = [
        ("model", model.title),
        ("model.name", model.family),
        ("source", model.source),
        ("weights", "in the package" if model.weights == model.name else model.weights),
        ("licence", model.licence),
        ("parameters", millions_of(model.millions)),
        ("COCO mask AP", score_of(model)),
        ("input", model.input_rule),
        ("evaluate", model.evaluate_command or "-"),
        ("fine-tune", model.train_command),
    ]
    return [*rows, ("note", model.note)] if model.note else rows


def millions_of(millions: float | None) -> str:
    """Return a number of parameters as text."""
    return "not confirmed" if millions is None else f"{millions:.1f} M"


def score_of(model: ZooModel) -> str:
    """Return the authors' score as text, a dash where they give none."""
    return "-" if model.mask_ap is None else f"{model.mask_ap:.1f}"


def page() -> str:
    """Return the text of docs/zoo.md."""
    overview = _table(
        ("name", "model", "licence", "parameters", "COCO mask AP"),
        [
            (f"[`{m.name}`](#{m.name})", m.title, m.licence, millions_of(m.millions), score_of(m))
            for m in MODELS.values()
        ],
    )
    encoders = _table(
        ("`model.backbone`", "encoder", "licence", "parameters", "families"),
        [_backbone_row(backbone) for backbone in BACKBONES],
    )
    sections = [_section(model) for model in MODELS.values()]
    return "\n".join([_HEAD, overview, "", _BACKBONES_HEAD, encoders, "", *sections])


def _backbone_row(backbone: Backbone) -> tuple[str, ...]:
    title = f"[{backbone.title}]({backbone.source})"
    families = ", ".join(f"`{name}`" for name in backbone.families)
    return f"`{backbone.name}`", title, backbone.licence, millions_of(backbone.millions), families


def _section(model: ZooModel) -> str:
    """Return the section of one model."""
    commands = [command for command in (model.evaluate_command, model.train_command) if command is not None]
    weights = "the weights are in the package" if model.weights == model.name else f"weights: {model.weights}"
    lines = [
        f"## {model.name}",
        "",
        f"{model.title}. `model.name: {model.family}`; {weights}.",
        f"Source: {model.source}. Licence: {model.licence}. Parameters: {millions_of(model.millions)}. COCO mask AP: "
        f"{score_of(model)}. Input: {model.input_rule}.",
        *([model.note] if model.note else []),
        "",
        "```sh",
        *commands,
        "```",
        "",
    ]
    return "\n".join(lines)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
