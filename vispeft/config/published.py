"""Keys of `model` that a published model decides, named by `model.weights`."""

from __future__ import annotations

from typing import Any

from vispeft.errors import ConfigError
from vispeft.zoo import MODELS


def with_family(values: Any) -> Any:
    """Return the raw keys of `model` with the family of the published model that `weights` names.

    Raises ConfigError where `name` is that of another family.
    """
    published = MODELS.get(values.get("weights", "")) if isinstance(values, dict) else None
    if published is None:
        return values
    if values.get("name", published.family) != published.family:
        raise ConfigError(
            f"`model.name` must be {published.family} with `model.weights: {published.name}`, but is "
            f"{values['name']!r}. Or leave it out."
        )
    return {**values, "name": published.family}
