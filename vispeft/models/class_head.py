"""Rows of a class head: fitted to another number of classes, or kept and extended by new classes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

import torch
from torch import Tensor, nn

# shared words of the smaller name, and similarity of the letters, from which on two names are near
_LEAST_SHARED_WORDS = 0.5
_LEAST_SIMILARITY = 0.8


@dataclass(frozen=True)
class ClassHead:
    """Modules of a model that hold one row for each class, by name.

    linears: linear maps whose outputs are class logits
    embeddings: further tables by class
    has_no_object: the last row of each linear map is "no object", and the logits go through a softmax; otherwise each
        goes through a sigmoid
    """

    linears: tuple[str, ...]
    embeddings: tuple[str, ...] = ()
    has_no_object: bool = False

    def tensors(self) -> list[str]:
        """Return the names of the tensors."""
        linear = [f"{name}.{kind}" for name in self.linears for kind in ("weight", "bias")]
        return linear + [f"{name}.weight" for name in self.embeddings]

    def num_extra(self, name: str) -> int:
        """Return the rows of a tensor that belong to no class."""
        return int(self.has_no_object and name.rpartition(".")[0] in self.linears)


def num_classes_of(state: Mapping[str, Tensor], head: ClassHead) -> int | None:
    """Return the number of classes of a head's first linear map; None where the tensors hold none of its name."""
    weight = f"{head.linears[0]}.weight"
    return len(state[weight]) - head.num_extra(weight) if weight in state else None


def fit_class_head(state: Mapping[str, Tensor], head: ClassHead, num_classes: int | None) -> dict[str, Tensor]:
    """Return the state with class rows for `num_classes` classes. Equal numbers, and None, are left alone.

    Where the number differs, every new class starts as the mean of the old ones: "some object", which keeps a two-stage
    query selection working from the first step. Sigmoid classes, if they are more than before, share the old ones'
    odds, so that an object is expected to be about one of them and not all at once. Softmax classes keep the odds of
    all together against "no object", for features of zero.
    """
    fitted = dict(state)
    for name in head.tensors():
        if name not in state:
            continue
        extra = head.num_extra(name)
        given = len(state[name]) - extra
        if num_classes is None or given == num_classes:
            continue
        rows = state[name].float()
        classes, no_object = rows[:given], rows[given:]
        start = classes.mean(0, keepdim=True)
        if name.endswith("bias") and head.has_no_object:
            start = classes.logsumexp(0, keepdim=True) - math.log(num_classes)
        elif name.endswith("bias"):
            start = start - max(0.0, math.log(num_classes / given))
        fitted[name] = torch.cat((start.expand(num_classes, *start.shape[1:]), no_object))
    return fitted


@torch.no_grad()
def add_classes(model: nn.Module, head: ClassHead, sources: Sequence[int | None]) -> None:
    """Add a class for each of `sources` behind the classes of a model, in place; their rows stay as they are.

    sources: index of the old class whose rows the new class starts from; None: the mean of all old classes
    """
    for name in (*head.linears, *head.embeddings):
        module = model.get_submodule(name)
        assert isinstance(module, nn.Linear | nn.Embedding)
        for kind, parameter in list(module.named_parameters(recurse=False)):
            rows = _with_new_rows(parameter, head.num_extra(f"{name}.{kind}"), sources)
            setattr(module, kind, nn.Parameter(rows, requires_grad=parameter.requires_grad))
        if isinstance(module, nn.Linear):
            module.out_features += len(sources)
        else:
            module.num_embeddings += len(sources)


def _with_new_rows(rows: Tensor, num_extra: int, sources: Sequence[int | None]) -> Tensor:
    num_old = len(rows) - num_extra
    old, extra = rows[:num_old], rows[num_old:]
    mean = old.mean(0)
    added = [mean if source is None else old[source] for source in sources]
    return torch.cat((old, *(row[None] for row in added), extra))


def nearest_class(name: str, old_names: Sequence[str]) -> int | None:
    """Return the old class with the nearest name, or None where no name is near.

    Names are near if they share half of the words of the shorter one, or if nearly all of their letters agree
    (aeroplane, airplane).
    """
    words = normalised(name).split()
    scores = [_nearness(words, normalised(old).split()) for old in old_names]
    best = max(range(len(scores)), key=scores.__getitem__, default=None)
    return None if best is None or scores[best] == (0.0, 0.0) else best


def _nearness(words: Sequence[str], others: Sequence[str]) -> tuple[float, float]:
    shorter = max(1, min(len(words), len(others)))
    shared = len(set(words) & set(others)) / shorter
    similarity = SequenceMatcher(None, " ".join(words), " ".join(others), autojunk=False).ratio()
    is_near = shared >= _LEAST_SHARED_WORDS or similarity >= _LEAST_SIMILARITY
    return (shared, similarity) if is_near else (0.0, 0.0)


def normalised(name: str) -> str:
    """Return a class name in small letters, with spaces between its words."""
    return " ".join(name.casefold().replace("_", " ").replace("-", " ").split())
