"""Model cards: README.md of a shared run, with the metadata that the hub reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import timm

from vispeft.config import Config
from vispeft.config.strict_yaml import write_yaml
from vispeft.engine.weights_source import NONE, PRETRAINED, published
from vispeft.io.hub import HubName, is_hub_name
from vispeft.models.bundled import BUNDLED

_MOST_CLASSES = 50
_METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR100")


@dataclass(frozen=True)
class Card:
    """Facts of a shared run.

    config: as it is shared
    summary: content of summary.json
    num_val_images: images on which the metrics were computed
    """

    repository: str
    config: Config
    summary: Mapping[str, Any]
    num_val_images: int
    class_names: tuple[str, ...]
    licence: str | None = None
    datasets: tuple[str, ...] = ()

    @property
    def methods(self) -> tuple[str, ...]:
        return tuple(str(name) for name in self.summary.get("methods", ()))

    @property
    def base_model(self) -> str | None:
        """The hub's name of the base; None where the hub does not have it."""
        model = self.config.model
        entry = published(model.weights)
        weights = model.weights if entry is None else entry.weights
        if is_hub_name(weights):
            return HubName.parse(weights).repository
        if model.weights == PRETRAINED:
            known = timm.get_pretrained_cfg(model.backbone or "resnet50", allow_unregistered=True)
            return None if known is None or not known.hf_hub_id else str(known.hf_hub_id)
        return weights if model.name == "transformers" else None


def model_card(card: Card) -> str:
    """Return the text of README.md."""
    return "\n".join(
        [
            "---",
            write_yaml(_metadata(card)).rstrip(),
            "---",
            "",
            f"# {card.repository.partition('/')[2]}",
            "",
            f"An adapter of vispeft for instance segmentation: {_methods(card)} on "
            f"{card.summary.get('model', card.config.model.name)}. The base stays unchanged and is fetched from its "
            "own source.",
            "",
            *_usage(card),
            *_results(card),
            *_training(card),
            *_base_and_licence(card),
            "",
        ]
    )


def _metadata(card: Card) -> dict[str, Any]:
    """Return the metadata of the card's front matter."""
    found: dict[str, Any] = {
        "library_name": "vispeft",
        "pipeline_tag": "image-segmentation",
        "tags": ["vispeft", "peft", "instance-segmentation", card.config.model.name, *card.methods],
    }
    if card.licence is not None:
        found["license"] = card.licence
    if card.base_model is not None:
        found |= {"base_model": card.base_model, "base_model_relation": "adapter"}
    if card.datasets:
        found["datasets"] = list(card.datasets)
    found["metrics"] = ["mean_average_precision"]
    found["model-index"] = [{"name": card.repository.partition("/")[2], "results": [_result(card)]}]
    return found


def _result(card: Card) -> dict[str, Any]:
    """Return the metrics in the form of the hub's model index."""
    dataset = card.datasets[0] if card.datasets else "validation set of the run"
    metrics = [
        {"type": "mean_average_precision", "name": f"{title} AP", "value": round(float(values["AP"]), 4)}
        for title, values in (("mask", card.summary["segm"]), ("box", card.summary["bbox"]))
    ]
    return {
        "task": {"type": "image-segmentation", "name": "Instance segmentation"},
        "dataset": {"type": dataset, "name": dataset, "split": "validation"},
        "metrics": metrics,
    }


def _methods(card: Card) -> str:
    names = [name for name in card.methods if name != "full"]
    in_full = "parameters trained in full" if "full" in card.methods else ""
    return " and ".join(text for text in (", ".join(names), in_full) if text) or "nothing"


def _usage(card: Card) -> list[str]:
    return [
        "## Use",
        "",
        "```sh",
        f"vispeft predict hf://{card.repository} photos --out predicted",
        "```",
        "",
        "```python",
        "import vispeft as vp",
        "",
        f'run = vp.load_run("hf://{card.repository}")',
        'instances = vp.predict(run, ["photo.jpg"])',
        "```",
        "",
    ]


def _results(card: Card) -> list[str]:
    """Return the section of the metrics."""
    rows = [
        f"| {title} | " + " | ".join(_number(values.get(name)) for name in _METRICS) + " |"
        for title, values in (("mask", card.summary["segm"]), ("box", card.summary["bbox"]))
    ]
    classes = [f"| {_cell(name)} | {_number(value)} |" for name, value in card.summary.get("per_category", {}).items()][
        :_MOST_CLASSES
    ]
    return [
        "## Results",
        "",
        f"COCO metrics by pycocotools on the {card.num_val_images} validation images of the run:",
        "",
        "| | " + " | ".join(_METRICS) + " |",
        "|---" * (len(_METRICS) + 1) + "|",
        *rows,
        "",
        "| class | mask AP |",
        "|---|---|",
        *classes,
        "",
    ]


def _training(card: Card) -> list[str]:
    """Return the section of the data and the training."""
    summary, config = card.summary, card.config
    names = ", ".join(f"[{name}](https://huggingface.co/datasets/{name})" for name in card.datasets)
    more = "" if len(card.class_names) <= _MOST_CLASSES else f" and {len(card.class_names) - _MOST_CLASSES} more"
    return [
        "## Data and training",
        "",
        f"- Data: {names or 'not named by the author; not part of this repository'}.",
        f"- Classes: {', '.join(_cell(name) for name in card.class_names[:_MOST_CLASSES])}{more}.",
        f"- Input: longer side {config.model.image_size} px.",
        f"- Trained parameters: {summary['trainable_params']:,} of {summary['total_params']:,} "
        f"({summary['trainable_percent']:.2f} %).",
        f"- {summary['steps']} steps of {config.train.batch_size * config.train.accumulate} images, learning rate "
        f"{config.train.lr:g}, seed {config.train.seed}. All settings: `config.yaml`.",
        "",
    ]


def _base_and_licence(card: Card) -> list[str]:
    """Return the section of the base and the licences."""
    weights, entry = card.config.model.weights, published(card.config.model.weights)
    if entry is not None:
        base = f"{entry.title}, {entry.source}, licence of its weights: {entry.licence}"
    elif weights == BUNDLED:
        base = "the model that comes with vispeft, licence: Apache-2.0"
    elif weights == NONE:
        base = "random weights, drawn from the seed"
    else:
        place = card.base_model if card.base_model is not None else weights
        base = f"{place}; its licence is named there"
    licence = card.licence or "not named by the author"
    return [
        "## Base and licence",
        "",
        f"- Base: {base}. Its terms hold for the use of both together.",
        f"- Licence of the adapter: {licence}.",
    ]


def _number(value: Any) -> str:
    """Return a COCO metric as text, a dash where it is undefined (-1)."""
    return "-" if value is None or float(value) < 0 else f"{float(value):.3f}"


def _cell(text: str) -> str:
    """Return text on one line without Markdown of its own."""
    plain = " ".join(text.split())
    return "".join(f"\\{letter}" if letter in "\\`*_[]<>|#" else letter for letter in plain)
