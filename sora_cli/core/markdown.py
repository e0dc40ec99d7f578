"""Escaping for Markdown, so that names and messages show as they are on cards of the Hub."""

from __future__ import annotations

import re

from sora_cli.core.console import printable

_MARKUP = re.compile(r"[\\`*|~<]|\](?=[(\[:])|&(?=[#\w])|(?<![^\W_])_|_(?![^\W_])")
"""Characters that may begin or end markup, a table cell, HTML or an entity. A "_" within a word is
harmless, and so are the brackets of an interval: only "](", "][" and "]:" make a link."""
_ENTITIES = {"<": "&lt;", "&": "&amp;"}  # not all renderers take "\<"
_NOT_IN_CODE = frozenset("\\`|<")


def escaped(text: object) -> str:
    """Return text as one line of Markdown that renders as the same text, also in a table cell."""
    return _MARKUP.sub(lambda m: _ENTITIES.get(m[0], f"\\{m[0]}"), _one_line(text))


def code(text: str) -> str:
    """Return text in backquotes if they can show it unchanged, else escaped."""
    plain = text and text == _one_line(text) and _NOT_IN_CODE.isdisjoint(text)
    return f"`{text}`" if plain else escaped(text)


def _one_line(text: object) -> str:
    return printable(" ".join(str(text).split()))
