"""Markdown as a renderer reads it that takes HTML, as the Hub's does."""

from __future__ import annotations

from collections.abc import Iterator

from markdown_it import MarkdownIt
from markdown_it.token import Token

HOSTILE = (
    "<img src=x onerror=alert(1)>", "a|b", "`c` ``", "one\ntwo\n\n---\n# three", "[x](//y)",
    "![x](y)", "<!--", "&lt;b&gt; &#60; AT&T", "*a* **b** _c_ __d__ ~~e~~ f_g", "\\ \\| \\*",
    "=1+1", "| --- |", "]: x", "\x1b[31m\u202e\ud800", "```", "a:b\n...\n---\n", "'\"{}",
)  # fmt: skip
"""Names as somebody may give them who wants a card to do harm."""
_RENDERER = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])


def tokens(text: str) -> Iterator[Token]:
    """The parts of a text, those within lines and cells among them."""
    for token in _RENDERER.parse(text):
        yield token
        yield from token.children or ()
