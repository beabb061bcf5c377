"""Mask annealing: masked attention is phased out block by block while a model trains."""

from __future__ import annotations

import math

# power of the polynomial; published with the code
_POWER = 0.9


def mask_probabilities(num_blocks: int, step: int, num_steps: int) -> tuple[float, ...]:
    """Return the probability of masked attention in each of the last blocks (EoMT).

    The run has `num_blocks + 2` equal parts: block i is always masked up to the end of part i, follows a polynomial
    from 1 to 0 in the next, and is never masked after that. The last part trains as inference runs.

    step: steps done
    num_steps: steps of the whole run
    """
    parts = (num_blocks + 2) * step / max(1, num_steps)
    return tuple(_annealed(parts - 1 - block_idx) for block_idx in range(num_blocks))


def _annealed(progress: float) -> float:
    return math.pow(1.0 - min(1.0, max(0.0, progress)), _POWER)
