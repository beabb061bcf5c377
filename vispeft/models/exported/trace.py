"""Graph of a segmentation model by `torch.export`, in torch's own operators alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.nn.attention import SDPBackend, sdpa_kernel
from vispeft_kernels.dispatch import requesting

from vispeft.errors import ConfigError
from vispeft.models.base import SegmentationModel
from vispeft.models.exported.description import INPUT, OUTPUTS
from vispeft.models.modes import evaluating
from vispeft.structures import Predictions

# images of the example that is traced: a batch of one would become a constant of the graph
_TRACED_BATCH = 2
_LARGEST_SIDE = 16384
# relative deviation of a graph's outputs from the model's
_TOLERANCE = 1e-3
# share of the queries that must agree: ties of the query selection may be broken otherwise
_AGREEING = 0.95


class FinalPredictions(nn.Module):
    """A segmentation model whose forward pass gives the tensors of its final layer."""

    def __init__(self, model: SegmentationModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return class logits, boxes if there are any, mask embeddings and mask features.

        images: [B, 3, H, W]
        """
        predictions: Predictions = self.model(images)
        final = predictions.final
        boxes = () if final.boxes is None else (final.boxes,)
        tensors = (final.class_logits, *boxes, final.mask_embeddings, predictions.mask_features)
        return tuple(tensor.float() for tensor in tensors)


def output_names(num_outputs: int) -> tuple[str, ...]:
    """Return the names of a graph's outputs. num_outputs: three without boxes, four with them"""
    return OUTPUTS if num_outputs == len(OUTPUTS) else tuple(name for name in OUTPUTS if name != "boxes")


@dataclass(frozen=True)
class Example:
    """Images on which a graph is traced and compared.

    side: H and W in pixels
    """

    side: int
    has_fixed_size: bool
    size_divisor: int

    def images(self, batch: int, height: int, width: int) -> Tensor:
        """Return noise with the statistics of normalised images: [B, 3, H, W]."""
        return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(0))

    @property
    def traced(self) -> Tensor:
        """Return the batch that is traced."""
        return self.images(_TRACED_BATCH, self.side, self.side)

    @property
    def compared(self) -> list[Tensor]:
        """Return batches of other sizes than the traced one, on which model and graph must agree."""
        batches = [self.images(1, self.side, self.side), self.images(3, self.side, self.side)]
        if not self.has_fixed_size:
            batches.append(self.images(1, self.side, self.side + self.size_divisor))
        return batches


def trace(model: SegmentationModel, example: Example) -> ExportedProgram:
    """Return the graph of a model on the CPU, for batches of any number of images.

    The custom operators of the kernels give way to their references. Raises ConfigError for a model that cannot be
    traced with sizes of any number.
    """
    sizes: dict[int, Dim] = {0: Dim("batch", min=1)}
    if not example.has_fixed_size:
        for axis, name in ((2, "rows"), (3, "columns")):
            sizes[axis] = example.size_divisor * Dim(name, min=2, max=_LARGEST_SIDE // example.size_divisor)
    with _traceable(model):
        try:
            return torch.export.export(
                FinalPredictions(model), (example.traced,), dynamic_shapes={INPUT: sizes}, strict=False
            )
        except (torch._dynamo.exc.UserError, AssertionError) as error:
            if example.has_fixed_size:
                raise
            reason = str(error).strip().split("\n")[0]
            raise ConfigError(
                f"The model cannot be exported for images of any size ({reason}). Leave out --dynamic-size."
            ) from error


def outputs_of(model: SegmentationModel, example: Example) -> list[tuple[Tensor, ...]]:
    """Return the outputs of the model itself for the compared batches."""
    with _traceable(model):
        module = FinalPredictions(model)
        return [module(images) for images in example.compared]


def differing_output(expected: tuple[Tensor, ...], found: tuple[Tensor, ...]) -> str | None:
    """Return the name of an output of a graph that is not the model's within rounding; None where all agree.

    Queries are compared in any order, since equal scores in their selection leave it open.
    """
    *of_queries, features = zip(output_names(len(expected)), expected, found, strict=True)
    name, wanted, given = features
    if _deviation(wanted, given).max() > _TOLERANCE:
        return name
    wanted_rows, given_rows = (
        torch.cat([_scaled(entry[which], entry[1]) for entry in of_queries], dim=-1) for which in (1, 2)
    )
    nearest = torch.cdist(wanted_rows, given_rows, p=float("inf")).argmin(-1)  # [B, Q]
    for name, wanted, given in of_queries:
        matched = given.gather(1, nearest[..., None].expand(-1, -1, given.shape[-1]))
        agrees = _deviation(wanted, matched).amax(-1) <= _TOLERANCE
        if agrees.float().mean() < _AGREEING:
            return name
    return None


@contextmanager
def _traceable(model: SegmentationModel) -> Iterator[None]:
    """Context in which a model runs in eval mode, without gradients, by the references of its kernels.

    Attention runs in plain operators, whose memory layout the graph keeps when the exporter decomposes it.
    """
    with requesting("reference"), sdpa_kernel(SDPBackend.MATH), evaluating(model):
        yield


def _scaled(tensor: Tensor, wanted: Tensor) -> Tensor:
    return tensor / wanted.abs().amax().clamp(min=1e-12)


def _deviation(wanted: Tensor, given: Tensor) -> Tensor:
    """Return absolute differences relative to the largest wanted value."""
    return _scaled((wanted - given).abs(), wanted)
