"""Mask annealing of PMT: masked attention is phased out block by block while the decoder trains."""

from __future__ import annotations

from vispeft.models.plain_mask.annealing import annealed

# shares of the run in the published configurations, whose decoder has six blocks
_FIRST_BLOCK_END = 3000 / 88_692
_SECOND_BLOCK_START, _LAST_BLOCK_START = 4 / 15, 10 / 15
_LENGTH = 1 / 6


def mask_probabilities(num_blocks: int, step: int, num_steps: int) -> tuple[float, ...]:
    """Return the probability of masked attention in each block of the decoder.

    The first block is masked only in the first 3.4 % of the run. The others are always masked at first, and follow a
    polynomial from 1 to 0 in a sixth of the run, block after block, from 27 % on; after 83 % there are no masks.
    Published for six blocks; other numbers are spread over the same time here.

    step: steps done
    num_steps: steps of the whole run
    """
    done = step / max(1, num_steps)
    spacing = (_LAST_BLOCK_START - _SECOND_BLOCK_START) / max(1, num_blocks - 2)
    starts = [_SECOND_BLOCK_START + spacing * index for index in range(num_blocks - 1)]
    return (annealed(done / _FIRST_BLOCK_END), *(annealed((done - start) / _LENGTH) for start in starts))
