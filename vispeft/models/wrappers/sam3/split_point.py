"""SAM 3 in two parts: split after the last block of the image encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from vispeft.models.split import Split, SplitPoint, SplitPointError
from vispeft.models.wrappers.sam3.answers import encoded
from vispeft.structures import Predictions, Targets

_ENCODER = "network.vision_encoder.backbone"


class Sam3Parts(Protocol):
    """The parts of a SAM 3 that both sides of the split need."""

    network: Any

    def continued(self, tokens: Tensor) -> Predictions:
        """Return the predictions from the tokens of the image encoder."""


def split_sam3(model: Sam3Parts) -> Split:
    """Return the split of a model whose image encoder is frozen; SplitPointError where a part of that is trained."""
    for name, parameter in model.network.vision_encoder.backbone.named_parameters():
        if parameter.requires_grad:
            raise SplitPointError(f"`{_ENCODER}.{name}` is trained")
    return _AfterEncoder(SplitPoint((_ENCODER,), (_ENCODER,)))


@dataclass(frozen=True)
class _AfterEncoder:
    """Split after the image encoder."""

    point: SplitPoint

    def prefix(self, model: Sam3Parts, images: Tensor) -> tuple[Tensor, ...]:
        return (encoded(model.network, images),)

    def tail(self, model: Sam3Parts, features: Sequence[Tensor], targets: Sequence[Targets] | None) -> Predictions:
        (tokens,) = features
        return model.continued(tokens)
