"""Write all pages of docs/reference."""

from __future__ import annotations

from pathlib import Path

from tools.reference import PAGES

FOLDER = Path(__file__).parents[2] / "docs" / "reference"

FOLDER.mkdir(parents=True, exist_ok=True)
for name, page in PAGES.items():
    (FOLDER / name).write_text(page(), encoding="utf-8")
