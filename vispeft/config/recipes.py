"""Recipes of the package: `configs/` of the source tree, `assets/configs` of an installed package."""

from __future__ import annotations

from pathlib import Path

from vispeft.errors import ConfigError
from vispeft.io.names import nearest_names


def recipe_names() -> list[str]:
    """Return the names of the recipes."""
    return sorted(path.stem for path in _folder().glob("*.yaml"))


def recipe_path(name: str) -> Path:
    """Return the file of a recipe by its name, such as `bundled_lora`."""
    path = _folder() / f"{name}.yaml"
    if not path.is_file():
        raise ConfigError(f"There is no recipe {name!r}, only {', '.join(recipe_names())}.")
    return path


def config_path(path: Path) -> Path:
    """Return `path` if it exists, or else the file of the recipe with this name, such as `bundled_lora`.

    Raises ConfigError for a name that is near to that of a recipe.
    """
    is_name = path.suffix in ("", ".yaml") and path.parent in (Path(), Path("configs"))
    if not is_name or path.exists():
        return path
    if path.stem in recipe_names():
        return recipe_path(path.stem)
    near = nearest_names(path.stem, recipe_names(), cutoff=0.8)
    if near:
        raise ConfigError(f"`{path}` is neither a configuration file nor a recipe. Did you mean `{near[0]}`?")
    return path


def _folder() -> Path:
    package = Path(__file__).parents[1]
    installed = package / "assets" / "configs"
    return installed if installed.is_dir() else package.parent / "configs"
