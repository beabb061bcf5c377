"""A model in two parts: a frozen prefix, whose outputs can be kept, and a tail, which continues from them.

A model family implements `Split`; `FrozenPrefix` and `Tail` work with any. Both parts call the model's own modules:
nothing is copied, replaced or patched.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from vispeft.errors import ConfigError
from vispeft.models.modes import evaluating
from vispeft.structures import LayerPredictions, Predictions, Targets


class SplitPointError(ConfigError):
    """Error for a model that has no frozen prefix to keep; the message is the reason, as a clause."""


@dataclass(frozen=True)
class SplitPoint:
    """Place in a model's forward pass before which everything is frozen, by module names.

    kept: modules whose outputs are kept, in the order in which they run
    prefix, tail: the frozen prefix is everything under a name of `prefix` that is not under a name of `tail`
    """

    kept: tuple[str, ...]
    prefix: tuple[str, ...]
    tail: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Return the last module before the split point."""
        return self.kept[-1]

    def is_in_prefix(self, name: str) -> bool:
        """Tell whether the module, parameter or buffer of this name is in the frozen prefix."""
        return is_under(name, self.prefix) and not is_under(name, self.tail)


class Split(Protocol):
    """Forward pass of a model in two parts, for images of one size.

    It holds no model: `model` is the model that was split, or another of its class with the same frozen prefix. That
    class is the family's own, which the signatures here cannot name.
    """

    @property
    def point(self) -> SplitPoint:
        """Return the place between the parts."""

    def prefix(self, model: Any, images: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs to keep, each [B, ...], of images [B, C, H, W]. No module of the tail runs."""

    def tail(self, model: Any, features: Sequence[Tensor], targets: Sequence[Targets] | None) -> Predictions:
        """Return the model's predictions from the outputs of `prefix`. No module of the frozen prefix runs.

        targets: of each image in train mode, None in eval mode
        """


class FrozenPrefix:
    """Frozen prefix of a model for images of one size: images in, features to keep out.

    Built with a first batch, which is also used to verify that the model, continued from its features, gives the same
    predictions. The model must be in the mode in which it is trained. SplitPointError where the predictions differ or
    a module of the prefix is random.

    images: [B, C, H, W]
    bytes_per_image: size of the features of one image
    """

    def __init__(self, model: nn.Module, split: Split, images: Tensor) -> None:
        self.split = split
        self.padded_size: tuple[int, int] = (images.shape[-2], images.shape[-1])
        _check_is_deterministic(model, split.point)
        # other images than those with which the split was found
        images = images.flip(-1)
        with torch.no_grad():
            outputs = split.prefix(model, images)
        if any(len(output) != len(images) for output in outputs):
            raise SplitPointError(f"`{split.point.name}` does not give one entry for each image")
        self._layouts = tuple(_Layout.of(output) for output in outputs)
        self.bytes_per_image = sum(output.nbytes for output in outputs) // len(images)
        self._check_predictions(model, images, outputs)

    @property
    def point(self) -> SplitPoint:
        """Return the place at which the prefix ends."""
        return self.split.point

    @torch.no_grad()
    def __call__(self, model: nn.Module, images: Tensor) -> tuple[Tensor, ...]:
        """Return the features of images [B, C, H, W]: tensors [B, ...], contiguous in memory."""
        return self._packed(self.split.prefix(model, images))

    def restored(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Return features in the dimensions and the memory layout of the outputs that they were made from."""
        return [layout.unpack(feature) for layout, feature in zip(self._layouts, features, strict=True)]

    def _packed(self, outputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return tuple(layout.pack(output) for layout, output in zip(self._layouts, outputs, strict=True))

    def _check_predictions(self, model: nn.Module, images: Tensor, outputs: Sequence[Tensor]) -> None:
        with evaluating(model):
            try:
                predictions = Tail(model, self)(self._packed(outputs))
            except RuntimeError as error:
                raise SplitPointError(f"the model cannot continue from `{self.point.name}` ({error})") from error
            if not _are_same(model(images), predictions):
                raise SplitPointError(f"the model, continued from `{self.point.name}`, gives other predictions")


class Tail(nn.Module):
    """Tail of a model, which continues from kept features. It holds the model itself and no further parameters."""

    def __init__(self, model: nn.Module, prefix: FrozenPrefix) -> None:
        super().__init__()
        self.model = model
        self.prefix = prefix

    def forward(self, features: Sequence[Tensor], targets: Sequence[Targets] | None = None) -> Predictions:
        """Return the model's predictions for the images of `features`; `targets` count in train mode only."""
        targets = targets if self.model.training else None
        return self.prefix.split.tail(self.model, self.prefix.restored(features), targets)


def is_under(name: str, roots: Iterable[str]) -> bool:
    """Tell whether a module, parameter or buffer is one of the modules `roots` or inside one."""
    return any(name == root or name.startswith(f"{root}.") for root in roots)


@dataclass(frozen=True)
class _Layout:
    """Memory layout of a tensor [B, ...]. order: its dimensions after the first, from the outermost in memory"""

    order: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Tensor) -> _Layout:
        return cls(tuple(sorted(range(1, tensor.dim()), key=tensor.stride().__getitem__, reverse=True)))

    def pack(self, tensor: Tensor) -> Tensor:
        return tensor.permute(0, *self.order).contiguous()

    def unpack(self, tensor: Tensor) -> Tensor:
        return tensor.permute(0, *(1 + self.order.index(dim) for dim in range(1, tensor.dim())))


def _check_is_deterministic(model: nn.Module, point: SplitPoint) -> None:
    for name, module in model.named_modules():
        if point.is_in_prefix(name) and module.training and _may_vary(module):
            raise SplitPointError(f"`{name}` is frozen, but in train mode")


def _may_vary(module: nn.Module) -> bool:
    """Return True for a module that may drop values or change its statistics in train mode; containers do neither."""
    owns = any(True for _ in (*module.parameters(recurse=False), *module.buffers(recurse=False)))
    return "drop" in type(module).__name__.lower() or (owns and not any(True for _ in module.children()))


def _are_same(one: Predictions, other: Predictions) -> bool:
    """Tell whether predictions are equal: exactly on a CPU, elsewhere within the error of any precision."""
    if one.mask_features.device.type == "cpu":
        return all(torch.equal(a, b) for a, b in zip(_tensors(one), _tensors(other), strict=True))
    # the choice of queries may tip over in the last bit; mask features depend on every kept output without a choice
    a, b = one.mask_features.float(), other.mask_features.float()
    return torch.allclose(a, b, rtol=0.01, atol=0.01 * float(a.abs().max()))


def _tensors(predictions: Predictions) -> list[Tensor]:
    def of(layer: LayerPredictions) -> list[Tensor]:
        tensors = (layer.class_logits, layer.boxes, layer.mask_embeddings, layer.mask_features)
        return [tensor for tensor in tensors if tensor is not None]

    return [predictions.mask_features, *(tensor for layer in predictions.layers for tensor in of(layer))]
