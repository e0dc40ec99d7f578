"""The pages of docs/reference equal the pages generated from the code."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.reference import PAGES

FOLDER = Path(__file__).parents[2] / "docs" / "reference"


@pytest.mark.parametrize("name", PAGES)
def test_page_is_up_to_date(name: str) -> None:
    committed = (FOLDER / name).read_text(encoding="utf-8")
    assert committed == PAGES[name](), "make reference"


def test_no_other_pages() -> None:
    assert {page.name for page in FOLDER.iterdir()} == {*PAGES, "packed.md"}  # a format
