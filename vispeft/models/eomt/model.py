"""EoMT: a plain ViT whose last blocks take queries beside the image's tokens, and a predictor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vispeft.losses.points import PUBLISHED_POINTS
from vispeft.models.backbones.plain_vit import PlainViT
from vispeft.models.backbones.timm_models import check_size
from vispeft.models.base import DetectionLimits, FollowsProgress, LossSettings, SegmentationModel
from vispeft.models.eomt.annealing import mask_probabilities
from vispeft.models.eomt.criterion import Criterion
from vispeft.models.eomt.postprocess import postprocess
from vispeft.models.eomt.predictor import Predictor
from vispeft.models.eomt.weights import load_eomt
from vispeft.models.roles.eomt import EOMT, decoder_roles
from vispeft.models.split import Split, SplitPointError
from vispeft.structures import ImageMeta, Instances, LayerPredictions, Predictions, Targets


class EoMT(SegmentationModel, FollowsProgress):
    """Encoder-only Mask Transformer (Kerssies et al., CVPR 2025; https://arxiv.org/abs/2503.19108).

    In train mode each of the last blocks has a prediction before it, whose masks restrict the attention of the queries
    with the probability in `mask_probs`. In eval mode there are no masks and no predictions but the last, also while
    masks are still annealed, so that an evaluation during training scores what the adapter gives later.

    mask_probs: probability of masked attention in each of the last blocks; 1 until `on_progress` is called
    """

    def __init__(self, encoder: PlainViT, predictor: Predictor, *, num_queries: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.queries = nn.Parameter(torch.randn(num_queries, encoder.dim))
        self.predictor = predictor
        self.mask_probs = mask_probabilities(encoder.num_last, 0, 1)

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
        """Return the mean of each channel, RGB, in 0..255, in the encoder's pretraining."""
        return self.encoder.pixel_mean

    @property
    def pixel_std(self) -> tuple[float, ...]:
        """Return the standard deviation of each channel, RGB, in 0..255, in the encoder's pretraining."""
        return self.encoder.pixel_std

    def forward(self, images: Tensor, targets: Sequence[Targets] | None = None) -> Predictions:
        """images: [B, 3, H, W] float, normalised and padded; `targets` are not used.

        Raises ConfigError where H or W is not a multiple of `size_divisor`.
        """
        check_size(images, self.size_divisor)
        grid = self.encoder.grid(images)
        tokens = self.encoder.first_tokens(images)
        x = torch.cat((self.queries.to(tokens).expand(images.shape[0], -1, -1), tokens), dim=1)
        layers: list[LayerPredictions] = []
        for block, mask_prob in zip(self.encoder.last_blocks, self.mask_probs, strict=True):
            attention_mask = None
            if self.training:
                layers.append(self._predict(x, grid))
                attention_mask = _attention_mask(layers[-1], grid, mask_prob, num_tokens=x.shape[1])
            x = self.encoder.run_block(block, x, attention_mask)
        layers.append(self._predict(x, grid))
        final = layers.pop()
        assert final.mask_features is not None
        return Predictions((*layers, replace(final, mask_features=None)), final.mask_features)

    def _predict(self, x: Tensor, grid: tuple[int, int]) -> LayerPredictions:
        """Return the predictions from tokens [B, Q + P + H W, C]."""
        y = self.encoder.norm(x)
        predictions: LayerPredictions = self.predictor(y[:, : self.num_queries], y[:, -grid[0] * grid[1] :], grid)
        return predictions

    def criterion(self, settings: LossSettings) -> Criterion:
        """Return the published loss. Matching costs are taken at as many points as mask losses."""
        return Criterion(num_points=settings.num_points or PUBLISHED_POINTS)

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

    def split(self, images: Tensor) -> Split:
        """Raise SplitPointError: this family has no split point."""
        raise SplitPointError("EoMT has no split point")

    def on_progress(self, step: int, num_steps: int) -> None:
        """Anneal the masks. step: steps done, of `num_steps`"""
        self.mask_probs = mask_probabilities(self.encoder.num_last, step, num_steps)

    def roles(self) -> Mapping[str, str]:
        """Return the roles of the encoder, those of its last blocks as `decoder.*`, and those of EoMT's own parts."""
        encoder_roles = self.encoder.roles("encoder")
        return {**encoder_roles, **decoder_roles(encoder_roles, self.encoder.num_last), **EOMT}

    def load_tensors(self, tensors: Mapping[str, Tensor], *, source: str) -> None:
        """Load the tensors of a whole model, in place; a class head of another size is fitted."""
        load_eomt(self, tensors, source=source)

    def check_image_size(self, image_size: int) -> None:
        """Raise ConfigError if the encoder does not make tokens of images of `image_size` pixels."""
        self.encoder.check_image_size(image_size)

    def set_activation_checkpointing(self, enable: bool = True) -> None:
        """Recompute in backward the activations of the blocks and of the mask features."""
        self.encoder.set_activation_checkpointing(enable)
        self.predictor.recomputes = enable


@torch.no_grad()
def _attention_mask(
    layer: LayerPredictions, grid: tuple[int, int], mask_prob: float, *, num_tokens: int
) -> Tensor | None:
    """Return the mask of a block's attention, [B, 1, N, N] bool: queries attend to the patches in their own mask.

    A query is masked with probability `mask_prob`. All other tokens attend everywhere, and every query to all queries
    and to the prefix: an empty mask leaves something to attend to. None where no query can be masked.
    """
    if mask_prob == 0:
        return None
    embeddings, mask_features = layer.mask_embeddings, layer.mask_features
    assert mask_features is not None
    # resizing is linear: that of the features is that of the mask logits, which are larger
    small = F.interpolate(mask_features, grid, mode="bilinear", align_corners=False)
    is_inside = torch.einsum("bqc,bchw->bqhw", embeddings, small.to(embeddings)).flatten(2) > 0  # [B, Q, H W]
    if mask_prob < 1:
        is_free = torch.rand(is_inside.shape[:2], device=is_inside.device) > mask_prob
        is_inside |= is_free[..., None]
    B, Q, num_patches = is_inside.shape
    mask = is_inside.new_ones(B, 1, num_tokens, num_tokens)
    mask[:, 0, :Q, -num_patches:] = is_inside
    return mask
