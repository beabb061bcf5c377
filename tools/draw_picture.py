#!/usr/bin/env python
"""Draw the picture of the README: photographs above, and below them what an adapted model finds in them.

vispeft predict runs/quickstart/lora FILE ... --out predicted
python tools/draw_picture.py predicted --out docs/picture.jpg
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from PIL import Image, ImageOps

from vispeft.engine.predict_files import overlay_names

GAP = 6


def main() -> None:
    """Parse the command line and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("predicted", type=Path, help="folder of `vispeft predict`")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--side", type=int, default=180, help="side of an image in pixels")
    args = parser.parse_args()
    files = [Path(image["file_name"]) for image in json.loads((args.predicted / "images.json").read_text())["images"]]
    rows = [files, [args.predicted / name for name in overlay_names(files)]]
    step = args.side + GAP
    sheet = Image.new("RGB", (len(files) * step - GAP, len(rows) * step - GAP), "white")
    for top, row in enumerate(rows):
        for left, path in enumerate(row):
            with Image.open(path) as picture:
                shown = ImageOps.pad(picture.convert("RGB"), (args.side, args.side), color="white")
            sheet.paste(shown, (left * step, top * step))
    sheet.save(args.out, quality=88)


if __name__ == "__main__":
    main()
