"""Atomic writing of picture files."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from vispeft.errors import DataError
from vispeft.io.atomic import replacing


def write_picture(path: Path, picture: Image.Image) -> None:
    """Write a picture atomically, in the format that the ending of `path` names."""
    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind is None or kind not in Image.SAVE:
        raise DataError(f"`{path}` must have the ending of a picture, such as .png, but has {path.suffix or 'none'!r}.")
    # Pillow raises ValueError for pixels that a format does not take
    with replacing(path, DataError, ValueError) as partial:
        picture.save(partial, kind)
