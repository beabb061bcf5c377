"""PMT: a frozen plain ViT, lateral taps, and a light decoder over queries and tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from vispeft.models.backbones.plain_vit import PlainViT
from vispeft.models.plain_mask.model import PlainMaskModel
from vispeft.models.plain_mask.predictor import Predictor
from vispeft.models.pmt.annealing import mask_probabilities
from vispeft.models.pmt.decoder import PlainMaskDecoder
from vispeft.models.pmt.split_point import split_pmt
from vispeft.models.pmt.weights import load_pmt
from vispeft.models.roles.pmt import PMT as PMT_ROLES
from vispeft.models.split import Split
from vispeft.structures import Predictions, Targets


class PMT(PlainMaskModel):
    """Plain Mask Transformer (Cavagnero et al., 2026; https://arxiv.org/abs/2603.25398).

    From the paper and its public code: taps after evenly spaced blocks of the encoder (5, 11, 17 and 23 of ViT-L),
    behind the encoder's last norm; a batch norm, a residual MLP and a scale per tap, whose results are summed; 200
    queries that join these tokens in six blocks of DINOv3's form with a feed-forward width of once the tokens' width;
    rotary positions of DINOv3 on the patches; predictor, losses and inference of EoMT.

    Choices made here: the rotary positions are never augmented (the code scales them at random in training, for
    encoders without positions of that kind alone), and the batch norms of several processes are not joined.

    taps: numbers of the blocks whose tokens the decoder takes
    """

    def __init__(self, encoder: PlainViT, decoder: PlainMaskDecoder, predictor: Predictor, *, num_queries: int) -> None:
        self.num_blocks = len(decoder.blocks)
        super().__init__(encoder, predictor, num_queries=num_queries)
        self.decoder = decoder
        num_taps = len(decoder.laterals)
        self.taps = tuple((index + 1) * encoder.num_blocks // num_taps - 1 for index in range(num_taps))

    def forward(self, images: Tensor, targets: Sequence[Targets] | None = None) -> Predictions:
        """images: [B, C, H, W] float, normalised and padded; `targets` are not used.

        Raises ConfigError where H or W is not a multiple of `size_divisor`.
        """
        grid = self.checked_grid(images)
        x, rotary = self.encoder.embedded(images)
        return self.continued((), self.tapped(x, rotary, range(self.encoder.num_blocks)), grid)

    def tapped(self, x: Tensor, rotary: Tensor | None, blocks: range) -> tuple[Tensor, ...]:
        """Return the tokens [B, P + H W, C] after those of some of the encoder's blocks that are taps.

        x, rotary: tokens before the first of these blocks, and the positions of the patches
        """
        taps = []
        for index in blocks:
            x = self.encoder.run_block(index, x, rotary)
            if index in self.taps:
                taps.append(x)
        return tuple(taps)

    def continued(self, first: Sequence[Tensor], later: Sequence[Tensor], grid: tuple[int, int]) -> Predictions:
        """Return the predictions from the tokens of the first and the later taps."""
        tokens = self.decoder.fused([self.encoder.norm(x) for x in (*first, *later)])
        return self.predictions_from(tokens, grid, self.decoder.rotary(grid, tokens.device))

    def run_query_block(self, index: int, x: Tensor, mask: Tensor | None, rotary: Tensor | None) -> Tensor:
        """Return the tokens [B, Q + P + H W, C] after one of the decoder's blocks."""
        assert rotary is not None
        return self.decoder.run_block(index, x, mask, rotary)

    def normed(self, x: Tensor) -> Tensor:
        """Return the tokens [B, N, C] after the decoder's norm."""
        y: Tensor = self.decoder.norm(x)
        return y

    def split(self, images: Tensor) -> Split:
        """Return the split after the encoder, or after its last block before which nothing is trained.

        Raises SplitPointError where the first block or anything before it is trained.
        """
        return split_pmt(self, images)

    def annealed(self, step: int, num_steps: int) -> tuple[float, ...]:
        """Return the probability of masked attention in each block after `step` of `num_steps` steps."""
        return mask_probabilities(self.num_blocks, step, num_steps)

    def roles(self) -> Mapping[str, str]:
        """Return the roles of the encoder and those of PMT's own parts."""
        return {**self.encoder.roles("encoder"), **PMT_ROLES}

    def load_tensors(self, tensors: Mapping[str, Tensor], *, source: str) -> None:
        """Load the tensors of a whole model, in place, by our names or the official ones.

        Official checkpoints hold the decoder alone; the encoder keeps its weights then. A class head of another size
        is fitted.
        """
        load_pmt(self, tensors, source=source)

    def set_activation_checkpointing(self, enable: bool = True) -> None:
        """Recompute in backward the activations of all blocks and of the mask features."""
        self.encoder.set_activation_checkpointing(enable)
        self.decoder.recomputes = enable
        self.predictor.recomputes = enable
