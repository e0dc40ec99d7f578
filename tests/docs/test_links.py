"""Links work on the site and on a code host; the navigation and the index have every page."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from tests.docs.pages import DOCS, PAGES, name_of, prose
from tests.shared_files import ROOT

_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]*)[^)]*\)|<(?:img|a)\s[^>]*?(?:src|href)=\"([^\"]*)\"")
_HEADING = re.compile(r"^#+ +(.*?) *#*$", re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links(page: Path) -> None:
    for target in _links(page):
        assert target, "an empty link"
        path, _, anchor = unquote(target).partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.is_file(), target
        if DOCS in page.parents:
            assert DOCS in file.parents, f"{target} is not on the site"
        if anchor:
            assert anchor in _anchors(file), target


def test_navigation_has_every_page() -> None:
    with (ROOT / "zensical.toml").open("rb") as file:
        entries = list(_pages(tomllib.load(file)["project"]["nav"]))
    assert len(entries) == len(set(entries))
    assert set(entries) == {page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")}


def test_index_links_every_page() -> None:
    index = DOCS / "index.md"
    linked = {(DOCS / target.partition("#")[0]).resolve() for target in _links(index)}
    assert not set(DOCS.rglob("*.md")) - linked - {index}


def _links(page: Path) -> Iterator[str]:
    text = re.sub(r"`[^`]+`", "", prose(page))
    for found in _LINK.finditer(text):
        target = found[1] if found[1] is not None else found[2]
        if not re.match(r"[a-z]+:", target):
            yield target


def _anchors(page: Path) -> set[str]:
    """Return the anchors of headings that the site and code hosts make alike."""
    found: set[str] = set()
    for heading in _HEADING.findall(prose(page)):
        text = re.sub(r"[^\w\s-]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)).lower()
        if (site := re.sub(r"[-\s]+", "-", text.strip())) == text.strip().replace(" ", "-"):
            found.add(site)
    return found


def _pages(entries: list[Any]) -> Iterator[str]:
    for entry in entries:
        for below in entry.values():
            if isinstance(below, str):
                yield below
            else:
                yield from _pages(below)
