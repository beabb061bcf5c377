"""Strict YAML: duplicate keys are errors, and only the core scalars of YAML 1.2 are converted from text.

PyYAML reads YAML 1.1, where `1e-3` is text, `no` is false, `010` is eight and `12:30` is 750.
These conversions would surprise users, so they are replaced.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from vispeft.errors import ConfigError

_SCALARS = {
    "null": r"~|null|Null|NULL|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?(?:0|[1-9][0-9]*)|0x[0-9a-fA-F]+",
    "float": (r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"),
}
_RESOLVERS = [(f"tag:yaml.org,2002:{name}", re.compile(rf"^(?:{pattern})$")) for name, pattern in _SCALARS.items()]


class _StrictLoader(yaml.SafeLoader):
    """A safe loader of text, whole numbers, numbers, true, false, null, lists and mappings with text keys."""

    yaml_implicit_resolvers = {None: _RESOLVERS}  # noqa: RUF012 (None: whatever the first character is)

    def construct_mapping(self, node: yaml.Node, deep: bool = False) -> dict[Hashable, Any]:
        """Return the mapping of `node`; a duplicate key, or one that is not text, is an error."""
        assert isinstance(node, yaml.MappingNode)
        seen: set[str] = set()
        for key_node, _ in node.value:
            where = f"line {key_node.start_mark.line + 1}"
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise ConfigError(f"{where}: keys must be text, but one is {key!r}. Put it in quotes.")
            if key in seen:
                raise ConfigError(f"{where}: the key `{key}` occurs twice. Keep one of them.")
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


def parse_yaml(text: str, source: str) -> Any:
    """Return the value of YAML `text`. `source` names it in errors: a file, or words of the command line."""
    try:
        return yaml.load(text, Loader=_StrictLoader)
    except ConfigError as error:
        raise ConfigError(f"{source}, {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{source} is not valid YAML: {_sentence(error)}") from error
    except RecursionError as error:
        raise ConfigError(f"{source} is nested too deeply for a configuration.") from error


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"`{path}` does not exist. Give the path of a configuration file.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"`{path}` cannot be read as a configuration file: {error}") from error
    value = parse_yaml(text, f"`{path}`")
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(f"`{path}` must contain a mapping of keys, but contains {describe(value)}.")
    return value


def write_yaml(value: dict[str, Any]) -> str:
    """Return YAML text that `parse_yaml` reads back to the same value."""
    return yaml.dump(value, Dumper=_PlainDumper, sort_keys=False, allow_unicode=True, width=120)


class _PlainDumper(yaml.SafeDumper):
    """A dumper that writes no anchors and quotes text that would otherwise be read as another type."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (PyYAML's own form)
        **yaml.SafeDumper.yaml_implicit_resolvers,
        None: _RESOLVERS,
    }

    def ignore_aliases(self, data: Any) -> bool:
        """Return True, so that a repeated value is written in full instead of as an alias."""
        return True


def describe(value: Any) -> str:
    """Return a text about a value for error messages: its content and its kind."""
    match value:
        case None:
            return "empty"
        case bool():
            return "true" if value else "false"
        case str():
            return f"{value!r} (text)"
        case int() | float():
            return f"{value!r}"
        case list() | tuple():
            return f"a list of {len(value)}"
        case dict():
            return f"a mapping with {', '.join(f'`{key}`' for key in list(value)[:4]) or 'no keys'}"
    return repr(value)


def _sentence(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"{error.problem} in line {error.problem_mark.line + 1}."
    return str(error).splitlines()[0]
