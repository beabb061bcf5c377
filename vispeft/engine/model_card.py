"""Model cards: README.md of a shared run, with the metadata that the hub reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import timm

from vispeft.config import Config
from vispeft.config.strict_yaml import write_yaml
from vispeft.engine.card_metrics import category_metric, index_metrics, metric_kinds, metrics_table, number_text
from vispeft.engine.weights_source import NONE, PRETRAINED, published
from vispeft.io.hub import HubName, is_hub_name
from vispeft.models.bundled import BUNDLED

_MOST_CLASSES = 50
_TASK_NAMES = {
    "instance": "instance segmentation",
    "semantic": "semantic segmentation",
    "panoptic": "panoptic segmentation",
    "detection": "object detection",
}
_METRICS_OF = {
    "instance": "COCO metrics",
    "semantic": "Mean intersection over union and accuracy of pixels",
    "panoptic": "Panoptic quality",
    "detection": "COCO metrics of boxes",
}
# tags of the hub: it has one for all segmentation
_PIPELINES = {"detection": "object-detection"}
_SEGMENTATION = "image-segmentation"


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
    def task(self) -> str:
        """Name of the task in words."""
        return _TASK_NAMES[self.config.task]

    @property
    def pipeline(self) -> str:
        """The hub's tag of the task."""
        return _PIPELINES.get(self.config.task, _SEGMENTATION)

    @property
    def methods(self) -> tuple[str, ...]:
        """Names of the methods."""
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
            f"An adapter of vispeft for {card.task}: {_methods(card)} on "
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
        "pipeline_tag": card.pipeline,
        "tags": ["vispeft", "peft", card.task.replace(" ", "-"), card.config.model.name, *card.methods],
    }
    if card.licence is not None:
        found["license"] = card.licence
    if card.base_model is not None:
        found |= {"base_model": card.base_model, "base_model_relation": "adapter"}
    if card.datasets:
        found["datasets"] = list(card.datasets)
    if metric_kinds(card.summary):
        found["metrics"] = sorted({kind.identifier for kind in metric_kinds(card.summary).values()})
        found["model-index"] = [{"name": card.repository.partition("/")[2], "results": [_result(card)]}]
    return found


def _result(card: Card) -> dict[str, Any]:
    """Return the metrics in the form of the hub's model index."""
    dataset = card.datasets[0] if card.datasets else "validation set of the run"
    return {
        "task": {"type": card.pipeline, "name": card.task.capitalize()},
        "dataset": {"type": dataset, "name": dataset, "split": "validation"},
        "metrics": index_metrics(card.summary),
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
    scores = list(card.summary.get("per_category", {}).items())[:_MOST_CLASSES]
    classes = [f"| {_cell(name)} | {number_text(value)} |" for name, value in scores]
    return [
        "## Results",
        "",
        f"{_METRICS_OF[card.config.task]} on the {card.num_val_images} validation images of the run:",
        "",
        *metrics_table(card.summary),
        f"| class | {category_metric(card.summary)} |",
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


def _cell(text: str) -> str:
    """Return text on one line without Markdown of its own."""
    plain = " ".join(text.split())
    return "".join(f"\\{letter}" if letter in "\\`*_[]<>|#" else letter for letter in plain)
