"""The documentation as data: its pages, and the blocks of code in them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.shared_files import ROOT

DOCS = ROOT / "docs"
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")),
    *sorted(DOCS.rglob("*.md")),
]
_FENCE = re.compile(r" *```(\w*)")
_MARK = re.compile(r"\s*<!-- (not run|file|fails|vllm): *(.*?) *-->\s*")
_CODE_SPAN = re.compile(r"`([^`]+)`")


def name_of(page: Path) -> str:
    """Return a page's path within the checkout."""
    return page.relative_to(ROOT).as_posix()


@dataclass(frozen=True)
class Block:
    """A fenced block of code.

    Attributes:
        line: of the fence, from 1.
        language: as the fence names it.
        mark: "not run", "file", "fails", "vllm" (`make test-vllm` runs it), or nothing.
        note: what the mark says: a reason, the name of a file, an exit code.
    """

    line: int
    language: str
    text: str
    mark: str = ""
    note: str = ""

    @property
    def runs(self) -> bool:
        """True if the block runs in its page's session."""
        return self.language in ("sh", "python") and self.mark in ("", "fails")


def blocks(page: Path) -> list[Block]:
    """Return a page's blocks, in order."""
    found, lines = [], page.read_text(encoding="utf-8").splitlines()
    inside: tuple[int, str, int] | None = None
    for i, line in enumerate(lines):
        fence = _FENCE.match(line)
        if inside is None and fence is not None:
            inside = i, fence[1], len(line) - len(line.lstrip())
        elif inside is not None and line.strip() == "```":
            start, language, indent = inside
            mark = _MARK.fullmatch(lines[start - 1]) if start else None
            text = "".join(f"{inner[indent:]}\n" for inner in lines[start + 1 : i])
            found.append(Block(start + 1, language, text, *(mark.groups() if mark else ())))
            inside = None
    assert inside is None, f"{name_of(page)}: a block is not closed"
    return found


def prose(page: Path) -> str:
    """Return a page without its blocks and comments."""
    text = page.read_text(encoding="utf-8")
    text = re.sub(r"^ *```.*?^ *```$", "", text, flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)


def code_spans(page: Path) -> Iterator[str]:
    """Yield the code within a page's sentences."""
    for found in _CODE_SPAN.finditer(prose(page)):
        yield " ".join(found[1].split())
