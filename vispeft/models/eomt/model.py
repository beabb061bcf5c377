"""EoMT: a plain ViT whose last blocks take queries beside the image's tokens, and a predictor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from vispeft.models.backbones.plain_vit import PlainViT
from vispeft.models.backbones.rotary import with_unrotated
from vispeft.models.eomt.annealing import mask_probabilities
from vispeft.models.eomt.split_point import split_eomt
from vispeft.models.eomt.weights import load_eomt
from vispeft.models.plain_mask.model import PlainMaskModel
from vispeft.models.plain_mask.predictor import Predictor
from vispeft.models.roles.eomt import EOMT, decoder_roles
from vispeft.models.split import Split
from vispeft.structures import Predictions, Targets


class EoMT(PlainMaskModel):
    """Encoder-only Mask Transformer (Kerssies et al., CVPR 2025; https://arxiv.org/abs/2503.19108).

    num_last: last blocks of the encoder, in which the queries run
    """

    def __init__(self, encoder: PlainViT, predictor: Predictor, *, num_queries: int, num_last: int) -> None:
        self.num_last = num_last
        super().__init__(encoder, predictor, num_queries=num_queries)

    @property
    def num_first(self) -> int:
        """Return the number of the encoder's blocks before the queries join."""
        return self.encoder.num_blocks - self.num_last

    def forward(self, images: Tensor, targets: Sequence[Targets] | None = None) -> Predictions:
        """images: [B, C, H, W] float, normalised and padded; `targets` are not used.

        Raises ConfigError where H or W is not a multiple of `size_divisor`.
        """
        grid = self.checked_grid(images)
        x, rotary = self.encoder.embedded(images)
        return self.continued(x, rotary, grid, first_block=0)

    def continued(self, x: Tensor, rotary: Tensor | None, grid: tuple[int, int], *, first_block: int) -> Predictions:
        """Return the predictions from the tokens [B, P + H W, C] before block `first_block` of the encoder.

        rotary: positions of the patches, from the encoder
        """
        x = self.encoder.run_blocks(x, rotary, range(first_block, self.num_first))
        if rotary is not None:
            rotary = with_unrotated(rotary, self.num_queries)
        return self.predictions_from(x, grid, rotary)

    def run_query_block(self, index: int, x: Tensor, mask: Tensor | None, rotary: Tensor | None) -> Tensor:
        """Return the tokens [B, Q + P + H W, C] after one of the encoder's last blocks."""
        return self.encoder.run_block(self.num_first + index, x, rotary, mask)

    def normed(self, x: Tensor) -> Tensor:
        """Return the tokens [B, N, C] after the encoder's last norm."""
        return self.encoder.norm(x)

    def split(self, images: Tensor) -> Split:
        """Return the split after the last block before which nothing is trained and the queries have not joined.

        Raises SplitPointError where the first block or anything before it is trained.
        """
        return split_eomt(self, images)

    def annealed(self, step: int, num_steps: int) -> tuple[float, ...]:
        """Return the probability of masked attention in each block after `step` of `num_steps` steps."""
        return mask_probabilities(self.num_last, step, num_steps)

    def roles(self) -> Mapping[str, str]:
        """Return the roles of the encoder, those of its last blocks as `decoder.*`, and those of EoMT's own parts."""
        encoder_roles = self.encoder.roles("encoder")
        return {**encoder_roles, **decoder_roles(encoder_roles, self.num_last), **EOMT}

    def load_tensors(self, tensors: Mapping[str, Tensor], *, source: str) -> None:
        """Load the tensors of a whole model, in place: by our names, the official ones or those of transformers.

        A class head of another size is fitted, and further queries start as copies of those of the file.
        """
        load_eomt(self, tensors, source=source)

    def set_activation_checkpointing(self, enable: bool = True) -> None:
        """Recompute in backward the activations of the blocks and of the mask features."""
        self.encoder.set_activation_checkpointing(enable)
        self.predictor.recomputes = enable
