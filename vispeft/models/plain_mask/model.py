"""Segmentation model of queries beside the tokens of a plain ViT: everything that EoMT and PMT have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from vispeft.losses.points import PUBLISHED_POINTS
from vispeft.models.backbones.plain_vit import PlainViT
from vispeft.models.backbones.timm_models import check_size
from vispeft.models.base import DetectionLimits, FollowsProgress, LossSettings, SegmentationModel
from vispeft.models.class_head import ClassHead
from vispeft.models.plain_mask.attention_mask import attention_mask
from vispeft.models.plain_mask.criterion import Criterion
from vispeft.models.plain_mask.predictor import Predictor
from vispeft.models.plain_mask.weights import CLASS_HEAD
from vispeft.models.softmax_postprocess import postprocess
from vispeft.models.softmax_scores import SoftmaxLabelMaps
from vispeft.structures import ImageMeta, Instances, LayerPredictions, Predictions


class PlainMaskModel(SegmentationModel, FollowsProgress, SoftmaxLabelMaps):
    """Segmentation model whose queries run through blocks beside all tokens of the image.

    In train mode each of these blocks has a prediction before it, whose masks restrict the attention of the queries
    with the probability in `mask_probs`. In eval mode there are no masks and no predictions but the last, also while
    masks are still annealed, so that an evaluation during training scores what the adapter gives later.

    mask_probs: probability of masked attention in each of the blocks; 1 until `on_progress` is called
    """

    def __init__(self, encoder: PlainViT, predictor: Predictor, *, num_queries: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.queries = nn.Parameter(torch.randn(num_queries, encoder.dim))
        self.predictor = predictor
        self.mask_probs = self.annealed(0, 1)

    @property
    def encoder_name(self) -> str:
        """Return the name of the timm model."""
        return self.encoder.name

    @property
    def num_classes(self) -> int:
        """Return the number of classes K of the class head, without "no object"."""
        return self.predictor.class_embed.out_features - 1

    @property
    def num_queries(self) -> int:
        """Return the number of queries Q."""
        return len(self.queries)

    @property
    def size_divisor(self) -> int:
        """Return the number of which H and W must be multiples."""
        return max(self.encoder.patch_size)

    @property
    def pixel_mean(self) -> tuple[float, ...]:
        """Return the mean of each channel in 0..255, in the encoder's pretraining."""
        return self.encoder.pixel_mean

    @property
    def pixel_std(self) -> tuple[float, ...]:
        """Return the standard deviation of each channel in 0..255, in the encoder's pretraining."""
        return self.encoder.pixel_std

    @abstractmethod
    def annealed(self, step: int, num_steps: int) -> tuple[float, ...]:
        """Return the probability of masked attention in each block after `step` of `num_steps` steps."""

    def on_progress(self, step: int, num_steps: int) -> None:
        """Anneal the masks. step: steps done, of `num_steps`"""
        self.mask_probs = self.annealed(step, num_steps)

    @abstractmethod
    def run_query_block(self, index: int, x: Tensor, mask: Tensor | None, rotary: Tensor | None) -> Tensor:
        """Return the tokens [B, Q + P + H W, C] after one of the blocks that take queries.

        index: 0 for the first of these blocks
        mask: [B, 1, N, N] bool, True where a token (row) may attend to another (column); None: everywhere
        rotary: positions of all tokens in the form of the family's blocks; None: they have none
        """

    @abstractmethod
    def normed(self, x: Tensor) -> Tensor:
        """Return the tokens [B, N, C] after the norm before every prediction."""

    def predictions_from(self, tokens: Tensor, grid: tuple[int, int], rotary: Tensor | None) -> Predictions:
        """Return the predictions from the image's tokens [B, P + H W, C], at which the queries join them.

        rotary: positions of the queries and these tokens
        """
        x = torch.cat((self.queries.to(tokens).expand(tokens.shape[0], -1, -1), tokens), dim=1)
        layers: list[LayerPredictions] = []
        for index, mask_prob in enumerate(self.mask_probs):
            mask = None
            if self.training:
                layers.append(self._predict(x, grid))
                mask = attention_mask(layers[-1], grid, mask_prob, num_tokens=x.shape[1])
            x = self.run_query_block(index, x, mask, rotary)
        final = self._predict(x, grid)
        assert final.mask_features is not None
        return Predictions((*layers, replace(final, mask_features=None)), final.mask_features)

    def _predict(self, x: Tensor, grid: tuple[int, int]) -> LayerPredictions:
        """Return the predictions from tokens [B, Q + P + H W, C]."""
        y = self.normed(x)
        predictions: LayerPredictions = self.predictor(y[:, : self.num_queries], y[:, -grid[0] * grid[1] :], grid)
        return predictions

    def checked_grid(self, images: Tensor) -> tuple[int, int]:
        """Return rows and columns of patches; ConfigError where H or W is not a multiple of `size_divisor`."""
        check_size(images, self.size_divisor)
        return self.encoder.grid(images)

    def criterion(self, settings: LossSettings) -> Criterion:
        """Return the published loss. Matching costs are taken at as many points as mask losses."""
        return Criterion(num_points=settings.num_points or PUBLISHED_POINTS, labelled_classes=settings.labelled_classes)

    def instances(
        self,
        predictions: Predictions,
        metas: Sequence[ImageMeta],
        *,
        padded_size: tuple[int, int],
        limits: DetectionLimits,
    ) -> list[Instances]:
        """Return the instances of every image of a batch in its own pixels, best first."""
        return postprocess(predictions, metas, padded_size=padded_size, limits=limits)

    def class_rows(self) -> ClassHead:
        """Return the class map."""
        return CLASS_HEAD

    def check_image_size(self, image_size: int) -> None:
        """Raise ConfigError if the encoder does not make tokens of images of `image_size` pixels."""
        self.encoder.check_image_size(image_size)
