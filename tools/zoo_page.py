"""Write docs/zoo.md from the table of published models.

python tools/zoo_page.py
"""

from __future__ import annotations

from pathlib import Path

from vispeft.zoo.page import page

PAGE = Path(__file__).resolve().parents[1] / "docs" / "zoo.md"

if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}")
