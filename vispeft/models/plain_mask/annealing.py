"""Course of a mask probability: masked attention is phased out while a model trains."""

from __future__ import annotations

import math

# power of the polynomial; published with the code
_POWER = 0.9


def annealed(progress: float) -> float:
    """Return the probability of masked attention: 1 up to a progress of 0, and 0 from a progress of 1 on."""
    return math.pow(1.0 - min(1.0, max(0.0, progress)), _POWER)
