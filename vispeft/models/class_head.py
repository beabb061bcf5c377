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


ANY_OBJECT = "object"
"""Name of a class of weights that covers every kind of object."""


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
        given = len(state[name]) - head.num_extra(name)
        if num_classes is not None and given != num_classes:
            fitted[name] = _rows_from(state[name].float(), name, head, [None] * num_classes)
    return fitted


@torch.no_grad()
def replace_classes(model: nn.Module, head: ClassHead, sources: Sequence[int | None]) -> None:
    """Give a model a class for each of `sources` in the place of its own, in place.

    Classes that start from the same old one share its odds, as `fit_class_head` does for the mean.

    sources: index of the old class whose rows the new class starts from; None: the mean of all old classes
    """
    for name in (*head.linears, *head.embeddings):
        module = model.get_submodule(name)
        for kind, parameter in list(module.named_parameters(recurse=False)):
            rows = _rows_from(parameter, f"{name}.{kind}", head, sources)
            setattr(module, kind, nn.Parameter(rows, requires_grad=parameter.requires_grad))
        _set_length(module, len(sources) + head.num_extra(f"{name}.weight"))


@torch.no_grad()
def add_classes(model: nn.Module, head: ClassHead, sources: Sequence[int | None]) -> None:
    """Add a class for each of `sources` behind the classes of a model, in place; their rows stay as they are.

    sources: index of the old class whose rows the new class starts from; None: the mean of all old classes
    """
    for name in (*head.linears, *head.embeddings):
        module = model.get_submodule(name)
        for kind, parameter in list(module.named_parameters(recurse=False)):
            rows = _with_new_rows(parameter, head.num_extra(f"{name}.{kind}"), sources)
            setattr(module, kind, nn.Parameter(rows, requires_grad=parameter.requires_grad))
        _set_length(module, len(rows))


def _rows_from(rows: Tensor, name: str, head: ClassHead, sources: Sequence[int | None]) -> Tensor:
    """Return the rows of one tensor for new classes, and those that belong to no class."""
    num_old = len(rows) - head.num_extra(name)
    old, extra = rows[:num_old], rows[num_old:]
    is_bias, num_new = name.endswith("bias"), sources.count(None)
    mean = old.mean(0)
    if is_bias and num_new and head.has_no_object:
        mean = old.logsumexp(0) - math.log(num_new)
    elif is_bias and num_new:
        mean = mean - max(0.0, math.log(num_new / num_old))
    started = []
    for source in sources:
        row = mean if source is None else old[source]
        started.append(row - math.log(sources.count(source)) if is_bias and source is not None else row)
    return torch.cat((torch.stack(started), extra))


def _set_length(module: nn.Module, length: int) -> None:
    """Tell a linear map or an embedding the number of its rows."""
    if isinstance(module, nn.Linear):
        module.out_features = length
    else:
        assert isinstance(module, nn.Embedding)
        module.num_embeddings = length


def _with_new_rows(rows: Tensor, num_extra: int, sources: Sequence[int | None]) -> Tensor:
    num_old = len(rows) - num_extra
    old, extra = rows[:num_old], rows[num_old:]
    mean = old.mean(0)
    added = [mean if source is None else old[source] for source in sources]
    return torch.cat((old, *(row[None] for row in added), extra))


def starting_classes(names: Sequence[str], old_names: Sequence[str]) -> list[int | None]:
    """Return the old class that each new one starts from: that of the nearest name, else "object", else None."""
    anything = old_names.index(ANY_OBJECT) if ANY_OBJECT in old_names else None
    nearest = (nearest_class(name, old_names) for name in names)
    return [anything if idx is None else idx for idx in nearest]


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


def same_names(names: Sequence[str], others: Sequence[str]) -> bool:
    """Return True for the same classes in the same order, in large or small letters."""
    return [normalised(name) for name in names] == [normalised(name) for name in others]


def normalised(name: str) -> str:
    """Return a class name in small letters, with spaces between its words."""
    return " ".join(name.casefold().replace("_", " ").replace("-", " ").split())
