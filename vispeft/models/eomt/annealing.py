"""Mask annealing of EoMT: masked attention is phased out block by block while a model trains."""

from __future__ import annotations

from vispeft.models.plain_mask.annealing import annealed


def mask_probabilities(num_blocks: int, step: int, num_steps: int) -> tuple[float, ...]:
    """Return the probability of masked attention in each of the last blocks (EoMT).

    The run has `num_blocks + 2` equal parts: block i is always masked up to the end of part i, follows a polynomial
    from 1 to 0 in the next, and is never masked after that. The last part trains as inference runs.

    step: steps done
    num_steps: steps of the whole run
    """
    parts = (num_blocks + 2) * step / max(1, num_steps)
    return tuple(annealed(parts - 1 - block_idx) for block_idx in range(num_blocks))
