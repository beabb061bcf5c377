"""Keys that a published model decides, named by `model.weights`."""

from __future__ import annotations

from typing import Any

from vispeft.errors import ConfigError
from vispeft.zoo import MODELS


def with_family(raw: dict[str, Any]) -> dict[str, Any]:
    """Return raw configuration keys with the family of the published model that `model.weights` names, if it does.

    Raises ConfigError where `model.name` is another family.
    """
    model = raw.get("model")
    weights = model.get("weights") if isinstance(model, dict) else None
    published = MODELS.get(weights) if isinstance(weights, str) else None
    if published is None or not isinstance(model, dict):
        return raw
    if model.get("name", published.family) != published.family:
        raise ConfigError(
            f"`model.name` must be {published.family} with `model.weights: {published.name}`, but is "
            f"{model['name']!r}. Or leave it out."
        )
    return {**raw, "model": {**model, "name": published.family}}
