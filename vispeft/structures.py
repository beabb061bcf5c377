"""Data structures shared by all parts, from images to predictions. Shapes are defined here once.

Letters: `B` images in a batch, `C` their channels, `H W` the padded network input, `h w` the mask features (about a
quarter of it), `T` targets of one image, `Q` queries, `K` classes, `D` mask embedding width, `N` instances kept for one
image. Box names tell their form; "normalised" means divided by the padded input's width and height. Padding is at the
right and bottom.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Targets:
    """Ground truth of one image in the frame of the padded network input.

    labels: [T] int64, contiguous class indices from 0
    boxes: [T, 4] float32, cxcywh, normalised
    masks: [T, H, W] bool
    """

    labels: Tensor
    boxes: Tensor
    masks: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> Targets:
        """The same targets on `device`."""
        return Targets(*(t.to(device, non_blocking=True) for t in (self.labels, self.boxes, self.masks)))


@dataclass(frozen=True)
class Window:
    """Place of a tile in its image.

    left, top: first column and row of the tile
    image_height, image_width: of the whole image, in pixels
    num_windows: tiles of the image
    """

    left: int
    top: int
    image_height: int
    image_width: int
    num_windows: int


@dataclass(frozen=True)
class ImageMeta:
    """Original size of a network input, by which predictions are mapped back to the file's own pixels.

    height, width: size of the image, or of the tile, as shown (EXIF applied), in pixels
    input_height, input_width: the part of the padded input that the whole image fills, from the top left, in pixels
    window: of a tile; None for a whole image
    """

    image_id: int
    file_name: str
    height: int
    width: int
    input_height: int
    input_width: int
    window: Window | None = None


@dataclass(frozen=True)
class Batch:
    """Images with their targets and their original sizes.

    images: [B, C, H, W] float32, RGB for three channels, normalised by the base's pixel statistics, zero in the padding
    """

    images: Tensor
    targets: tuple[Targets, ...]
    metas: tuple[ImageMeta, ...]

    def __len__(self) -> int:
        return len(self.images)

    @property
    def inputs(self) -> Tensor:
        """Input of the model."""
        return self.images

    @property
    def padded_size(self) -> tuple[int, int]:
        """H and W."""
        return self.images.shape[-2], self.images.shape[-1]

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on `device`."""
        return Batch(self.images.to(device, non_blocking=True), tuple(t.to(device) for t in self.targets), self.metas)


@dataclass(frozen=True)
class FeatureBatch:
    """A batch of kept features: outputs of a model's frozen prefix in place of the images.

    features: each [B, ...], as `vispeft.models.split.FrozenPrefix` gives and `Tail` takes them
    padded_size: H and W of the images
    """

    features: tuple[Tensor, ...]
    targets: tuple[Targets, ...]
    metas: tuple[ImageMeta, ...]
    padded_size: tuple[int, int]

    def __len__(self) -> int:
        return len(self.metas)

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """Input of the model's tail."""
        return self.features

    def to(self, device: torch.device | str) -> FeatureBatch:
        """The same batch on `device`."""
        features = tuple(feature.to(device, non_blocking=True) for feature in self.features)
        return FeatureBatch(features, tuple(t.to(device) for t in self.targets), self.metas, self.padded_size)


AnyBatch = Batch | FeatureBatch


@dataclass(frozen=True)
class LayerPredictions:
    """Predictions of one decoder layer for all queries.

    class_logits: [B, Q, K], one sigmoid per class; or [B, Q, K + 1], a softmax whose last entry is "no object"
    boxes: [B, Q, 4] cxcywh, normalised, in 0..1; None in families without a box head
    mask_embeddings: [B, Q, D]; mask logits are their product with the mask features
    mask_features: [B, D, h, w] of this layer, in families whose layers change them; None: those of `Predictions`
    """

    class_logits: Tensor
    boxes: Tensor | None
    mask_embeddings: Tensor
    mask_features: Tensor | None = None

    @property
    def predicted_boxes(self) -> Tensor:
        """Return the boxes, for code of families with a box head."""
        assert self.boxes is not None
        return self.boxes


@dataclass(frozen=True)
class DenoisingPredictions:
    """Predictions for the noised ground truth of denoising training (DN-DETR; Mask DINO section 3.3).

    Query `g * group_size + t` of image `b` reconstructs target `t` of that image, for each group `g`; queries with
    `t` at or above the number of that image's targets are padding. One entry of `layers` per entry of
    `Predictions.layers`.
    """

    layers: tuple[LayerPredictions, ...]
    num_groups: int
    group_size: int


@dataclass(frozen=True)
class Predictions:
    """Predictions of a model for a batch. Mask logits are never stored for all queries of all layers: they are
    `einsum("bqd,bdhw->bqhw", mask_embeddings, mask_features)`, taken where they are needed.

    layers: from the initial prediction (before the first decoder layer) to the final one; the last counts at inference
    mask_features: [B, D, h, w], of the final layer and of all layers without their own
    proposals: the two-stage encoder's own predictions for the selected queries, or None
    denoising: only in training, where there were targets
    """

    layers: tuple[LayerPredictions, ...]
    mask_features: Tensor
    proposals: LayerPredictions | None = None
    denoising: DenoisingPredictions | None = None

    @property
    def final(self) -> LayerPredictions:
        """The last decoder layer's predictions."""
        return self.layers[-1]

    def mask_features_of(self, layer: LayerPredictions) -> Tensor:
        """Return the mask features that go with the embeddings of one of `layers`: [B, D, h, w]."""
        return self.mask_features if layer.mask_features is None else layer.mask_features

    def mask_logits(self, image_idx: int, query_idx: Tensor) -> Tensor:
        """Mask logits of some queries of one image. query_idx: [N] int64. Returns [N, h, w]."""
        embeddings = self.final.mask_embeddings[image_idx, query_idx]
        return torch.einsum("nd,dhw->nhw", embeddings, self.mask_features[image_idx])


@dataclass(frozen=True)
class Instances:
    """Detected instances of one image at the image's own size, best first.

    scores: [N] float32 in 0..1
    labels: [N] int64, contiguous class indices
    boxes_xyxy: [N, 4] float32, absolute pixels, clipped to the image
    rles: N compressed COCO RLE dictionaries ({"size": [height, width], "counts": str})
    """

    scores: Tensor
    labels: Tensor
    boxes_xyxy: Tensor
    rles: Sequence[dict[str, Any]]

    def __len__(self) -> int:
        return len(self.scores)
