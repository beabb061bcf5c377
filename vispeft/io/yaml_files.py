"""Reading of the YAML that vispeft wrote itself. What users write is read more strictly, by `vispeft.config`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from vispeft.errors import DataError


def read_mapping(path: Path) -> dict[str, Any]:
    """Return the mapping of a YAML file, such as the config.yaml of a run."""
    # libyaml, where it is there, is ten times faster
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        value = yaml.load(path.read_bytes(), loader)
    except OSError as error:
        raise DataError(f"`{path}` cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        reason = str(error).splitlines()[0].rstrip(".:")
        raise DataError(f"`{path}` is not valid YAML: {reason}. Put it back as vispeft wrote it.") from error
    if not isinstance(value, dict):
        raise DataError(f"`{path}` must hold a mapping of keys, but does not. Put it back as vispeft wrote it.")
    return value
