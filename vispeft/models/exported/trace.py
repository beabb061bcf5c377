"""Graph of a segmentation model by `torch.export`, in torch's own operators alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.nn.attention import SDPBackend, sdpa_kernel
from vispeft_kernels.dispatch import requesting

from vispeft.errors import ConfigError
from vispeft.models.base import SegmentationModel
from vispeft.models.exported.description import INPUT
from vispeft.models.exported.quiet import quiet
from vispeft.models.modes import evaluating
from vispeft.structures import Predictions

# images of the traced batch: a batch of one would become a constant of the graph
_TRACED_BATCH = 2


class FinalPredictions(nn.Module):
    """A segmentation model whose forward pass gives the tensors of its final layer."""

    def __init__(self, model: SegmentationModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return class logits, boxes if there are any, mask embeddings and mask features.

        images: [B, C, H, W]
        """
        predictions: Predictions = self.model(images)
        final = predictions.final
        boxes = () if final.boxes is None else (final.boxes,)
        tensors = (final.class_logits, *boxes, final.mask_embeddings, predictions.mask_features)
        return tuple(tensor.float() for tensor in tensors)


def trace(model: SegmentationModel, side: int) -> ExportedProgram:
    """Return the graph of a model on the CPU, for batches of any number of images.

    The kernels' own operators are replaced by their references in plain torch.

    side: H and W of the images, in pixels

    Raises ConfigError for a model that cannot be traced.
    """
    images = torch.zeros(_TRACED_BATCH, model.num_channels, side, side)
    # the attention of torch has several memory layouts, of which the exporter must find the same one twice
    with requesting("reference"), sdpa_kernel(SDPBackend.MATH), evaluating(model), quiet():
        try:
            program = torch.export.export(
                FinalPredictions(model), (images,), dynamic_shapes={INPUT: {0: Dim("batch", min=1)}}, strict=False
            )
        except Exception as error:
            # a step that cannot be traced raises whatever it meets
            raise ConfigError(
                f"The model cannot be exported: torch.export cannot trace it ({_first_line(error)}). Predict with the "
                "run itself. The guide lists what can be exported."
            ) from error
    # stored in a .pt2 file: one element, expanded
    program.example_inputs = ((torch.zeros(1).expand_as(images),), {})
    return program


def outputs_of(model: SegmentationModel, images: Tensor) -> tuple[Tensor, ...]:
    """Return the outputs that a graph of the model must give. images: [B, C, H, W]"""
    with evaluating(model):
        outputs: tuple[Tensor, ...] = FinalPredictions(model)(images)
    return outputs


def _first_line(error: Exception) -> str:
    """Return the first line of an exception's message, without its final full stop."""
    return str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__
