"""Channels of TIFF files: one page for each, or bands of one page, interleaved or in planes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vispeft.data.reading.image_metadata import turned
from vispeft.data.reading.tiff import layouts_of_pages, read_bands
from vispeft.errors import DataError


def read_tiff_channels(path: Path, num_channels: int | None) -> NDArray[Any] | None:
    """Return the values of a TIFF file, [h, w, C], as stored; None for a form that only Pillow reads, such as YCbCr.

    num_channels: C; a file of one band in each of C pages is a stack, other pages than the first are left out. None: as
        many channels as there are
    """
    pages = layouts_of_pages(path)
    first = pages[0]
    if not first.is_plain:
        return None
    stack = [page for page in pages if page.bands == 1 and page.size == first.size]
    if first.bands == 1 and len(stack) == len(pages) > 1 and num_channels in (None, len(pages)):
        values = np.concatenate([read_bands(path, page) for page in pages], axis=2)
    else:
        values = read_bands(path, first)
    if num_channels is not None and values.shape[2] != num_channels:
        if num_channels == 1 and first.bands > 1:
            # the brightness of a colour image
            return None
        pages_text = f" and {len(pages)} pages" if len(pages) > 1 else ""
        raise DataError(
            f"{path} must have {num_channels} channels (`model.in_chans`), but has {first.bands}{pages_text}. Change "
            "`model.in_chans`, or the file."
        )
    return turned(values, first.orientation)
