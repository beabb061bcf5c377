"""One forward pass of training: a batch in, weighted losses out, with the loss in full precision."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from vispeft.models.base import Criterion
from vispeft.structures import AnyBatch, DenoisingPredictions, LayerPredictions, Predictions


class SealedBatch:
    """A batch that Fabric and DDP pass on unchanged.

    Otherwise mixed precision would round boxes and pixels of the input, and frozen dataclasses would be refused.
    """

    def __init__(self, batch: AnyBatch) -> None:
        self.batch = batch


class LossModule(nn.Module):
    """Model and criterion in one, so that one forward call of a wrapped module (DDP) gives the losses."""

    def __init__(self, model: nn.Module, criterion: Criterion) -> None:
        super().__init__()
        self.model = model
        self.criterion = criterion

    def forward(self, sealed: SealedBatch) -> dict[str, Tensor]:
        """Return weighted scalar losses by name, float32."""
        batch = sealed.batch
        predictions: Predictions = self.model(batch.inputs, batch.targets)
        with torch.autocast(predictions.mask_features.device.type, enabled=False):
            return self.criterion(in_float32(predictions), batch.targets)


def in_float32(predictions: Predictions) -> Predictions:
    """Return the predictions in float32, without a copy if they are float32 already.

    What a family's own kind of predictions has beside is left to its criterion.
    """
    denoising = predictions.denoising
    return replace(
        predictions,
        layers=tuple(_layer_in_float32(layer) for layer in predictions.layers),
        mask_features=_maps_in_float32(predictions.mask_features),
        proposals=None if predictions.proposals is None else _layer_in_float32(predictions.proposals),
        denoising=None
        if denoising is None
        else DenoisingPredictions(
            tuple(_layer_in_float32(layer) for layer in denoising.layers), denoising.num_groups, denoising.group_size
        ),
    )


def _maps_in_float32(maps: Tensor) -> Tensor:
    # what is copied anyway is copied into the order in which the losses read it
    return maps if maps.dtype == torch.float32 else maps.to(torch.float32, memory_format=torch.channels_last)


def _layer_in_float32(layer: LayerPredictions) -> LayerPredictions:
    boxes, features = layer.boxes, layer.mask_features
    return LayerPredictions(
        layer.class_logits.float(),
        None if boxes is None else boxes.float(),
        layer.mask_embeddings.float(),
        None if features is None else _maps_in_float32(features),
    )
