"""Colours of classes and instances."""

_GOLDEN_RATIO = 0.618034


def spread_hue(number: int) -> float:
    """Return a hue in 0..1 for a class or instance number, far from the hues of nearby numbers."""
    return number * _GOLDEN_RATIO % 1
