"""Reading of a configuration from a file and the command line, and its YAML dump."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from vispeft.config.messages import known_keys, sentences
from vispeft.config.overrides import Override, apply_overrides, parse_override
from vispeft.config.published import with_family
from vispeft.config.recipes import config_path
from vispeft.config.schema import Config
from vispeft.config.strict_yaml import read_yaml, write_yaml
from vispeft.errors import ConfigError


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Return the validated configuration of a YAML file, or of a recipe by its name, with `key=value` overrides."""
    return _validated(read_yaml(config_path(path)), [parse_override(word) for word in overrides], f"`{path}`: ")


def parse_config(raw: Mapping[str, Any], overrides: Sequence[str] = ()) -> Config:
    """Return the validated configuration of a plain mapping with `key=value` overrides."""
    return _validated(dict(raw), [parse_override(word) for word in overrides], "")


def dump_config(config: Config) -> str:
    """Return YAML that `load_config` reads back to the same configuration, defaults included."""
    return write_yaml(config.model_dump(mode="json"))


def _validated(raw: dict[str, Any], overrides: Sequence[Override], source: str) -> Config:
    merged = apply_overrides(raw, overrides)
    # a section whose keys are all commented out reads as null
    filled = {key: value for key, value in merged.items() if value is not None}
    try:
        return Config.model_validate_json(json.dumps(with_family(filled)))
    except ValidationError as error:
        paths = [override.path for override in overrides]
        found = sentences(error, known=list(known_keys(Config)), overridden=paths)
        raise ConfigError(source + "\n".join(found)) from error
    except ConfigError as error:
        raise ConfigError(source + str(error)) from error
    except ValueError as error:
        raise ConfigError(f"{source}a part of the configuration contains itself.") from error
