"""Model types of transformers that answer with class and mask queries, as data, and their calls."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from vispeft.errors import ConfigError

Answer = tuple[Tensor, Tensor]
"""Class logits [B, Q, K + 1] and mask logits [B, Q, h, w] of one layer."""


@dataclass(frozen=True)
class Labels:
    """Ground truth of a batch in the form of the library's losses: masks [T, H, W] and classes [T] of each image."""

    masks: list[Tensor]
    classes: list[Tensor]


@dataclass(frozen=True)
class Kind:
    """A model type.

    answers: returns the answers of all layers that the network's loss takes, the final one last, for a task
    loss_terms: returns the network's own weighted losses by the library's names
    class_head: module with one output for each class and one for "no object"
    roles: patterns inside the network of parts that a plan may name
    has_points: the losses are taken at points of the masks, whose number can be set
    fixed_size: the input is a square of `image_size` pixels
    free_size: with `fixed_size`, the side can be another than that of the weights
    options: fields of the configuration that are always set
    """

    answers: Callable[[nn.Module, Tensor, str], list[Answer]]
    loss_terms: Callable[[Any, Sequence[Answer], Labels], dict[str, Tensor]]
    class_head: str
    roles: Mapping[str, str]
    has_points: bool = True
    fixed_size: bool = False
    free_size: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)


def kind_of(config: Any) -> Kind:
    """Return the kind of a configuration; ConfigError for a model type without class and mask queries."""
    if config.model_type not in KINDS:
        raise ConfigError(
            f"`weights` must name a model of type {', '.join(KINDS)}, but its type is {config.model_type}. "
            "Choose another model."
        )
    return KINDS[config.model_type]


def _auxiliary_answers(network: nn.Module, images: Tensor, task: str, **inputs: Any) -> list[Answer]:
    # hidden states, because some configurations make auxiliary answers of them without asking for them
    outputs = network(
        pixel_values=images, output_auxiliary_logits=True, output_hidden_states=True, return_dict=True, **inputs
    )
    # the two names of the same list
    auxiliary = outputs.get("auxiliary_logits") or outputs.get("auxiliary_predictions") or ()
    answers = [(layer["class_queries_logits"], layer["masks_queries_logits"]) for layer in auxiliary]
    return [*answers, (outputs.class_queries_logits, outputs.masks_queries_logits)]


def _oneformer_answers(network: nn.Module, images: Tensor, task: str) -> list[Answer]:
    length = int(network.config.task_seq_len)  # type: ignore[union-attr, arg-type]
    tokens = torch.zeros(length, dtype=torch.long, device=images.device)
    given = torch.tensor(_TASK_TOKENS[task][:length], device=images.device)
    tokens[: len(given)] = given
    return _auxiliary_answers(network, images, task, task_inputs=tokens.expand(images.shape[0], -1))


def _eomt_answers(network: nn.Module, images: Tensor, task: str) -> list[Answer]:
    # the output holds the final answer alone
    with _recorded(network, "predict") as calls:
        network(pixel_values=images)
    return [(classes, masks) for masks, classes in calls]


@contextlib.contextmanager
def _recorded(network: nn.Module, name: str) -> Iterator[list[Any]]:
    """Context that lists what a method of the network returns."""
    method = getattr(network, name)
    results: list[Any] = []

    def recording(*args: Any, **kwargs: Any) -> Any:
        results.append(method(*args, **kwargs))
        return results[-1]

    setattr(network, name, recording)
    try:
        yield results
    finally:
        delattr(network, name)


def _loss_terms(network: Any, answers: Sequence[Answer], labels: Labels) -> dict[str, Tensor]:
    *auxiliary, (classes, masks) = answers
    terms: dict[str, Tensor] = network.get_loss_dict(
        masks, classes, labels.masks, labels.classes, _as_dictionaries(auxiliary)
    )
    return terms


def _oneformer_loss_terms(network: Any, answers: Sequence[Answer], labels: Labels) -> dict[str, Tensor]:
    *auxiliary, (classes, masks) = answers
    terms: dict[str, Tensor] = network.get_loss_dict(
        masks_queries_logits=masks,
        class_queries_logits=classes,
        contrastive_queries_logits=None,
        mask_labels=labels.masks,
        class_labels=labels.classes,
        text_queries=None,
        auxiliary_predictions=_as_dictionaries(auxiliary),
        calculate_contrastive_loss=False,
    )
    return terms


def _eomt_loss_terms(network: Any, answers: Sequence[Answer], labels: Labels) -> dict[str, Tensor]:
    terms: dict[str, Tensor] = {}
    for i, (classes, masks) in enumerate(answers):
        losses = network.get_loss_dict(masks, classes, labels.masks, labels.classes, None)
        terms.update({f"{name}_{i}": loss for name, loss in losses.items()})
    return terms


def _as_dictionaries(answers: Sequence[Answer]) -> list[dict[str, Tensor]]:
    return [{"class_queries_logits": classes, "masks_queries_logits": masks} for classes, masks in answers]


# "the task is instance" and so on by CLIP's tokenizer, with its start and its end; padded with zeros
_TASK_TOKENS = {
    "instance": (49406, 518, 10549, 533, 34572, 49407),
    "semantic": (49406, 518, 10549, 533, 29119, 1550, 49407),
    "panoptic": (49406, 518, 10549, 533, 1072, 24755, 49407),
}

_EOMT = Kind(
    _eomt_answers,
    _eomt_loss_terms,
    class_head="class_predictor",
    roles={
        "heads": "class_predictor | mask_head",
        "class_head": "class_predictor",
        "new": "query | upscale_block | mask_head | class_predictor",
    },
    fixed_size=True,
)

KINDS: dict[str, Kind] = {
    "mask2former": Kind(
        _auxiliary_answers,
        _loss_terms,
        class_head="class_predictor",
        roles={
            "heads": "class_predictor | model.transformer_module.decoder.mask_predictor",
            "class_head": "class_predictor",
            "new": "model.pixel_level_module.decoder | model.transformer_module | class_predictor",
        },
    ),
    "maskformer": Kind(
        _auxiliary_answers,
        _loss_terms,
        class_head="class_predictor",
        roles={
            "heads": "class_predictor | mask_embedder",
            "class_head": "class_predictor",
            "new": "model.pixel_level_module.decoder | model.transformer_module | class_predictor | mask_embedder",
        },
        has_points=False,
    ),
    "oneformer": Kind(
        _oneformer_answers,
        _oneformer_loss_terms,
        class_head="model.transformer_module.decoder.class_embed",
        roles={
            "heads": "model.transformer_module.decoder.class_embed | model.transformer_module.decoder.mask_embed",
            "class_head": "model.transformer_module.decoder.class_embed",
            "new": "model.pixel_level_module.decoder | model.transformer_module | model.task_encoder",
        },
        # the text branch and its contrastive loss need a sentence for each object of a panoptic data set
        options={"is_training": False},
    ),
    "eomt": _EOMT,
    "eomt_dinov3": replace(_EOMT, free_size=True),
}
