"""Text that others wrote, as Markdown that shows it: the Hub renders cards, with HTML in them."""

from __future__ import annotations

import re

from sora_cli.core.console import printable

_MARKUP = re.compile(r"[\\`*|~<]|\](?=[(\[:])|&(?=[#\w])|(?<![^\W_])_|_(?![^\W_])")
"""Characters that may begin or end markup, a cell, HTML or an entity; not the "_" within a word,
nor the brackets of an interval: only "](", "][" and "]:" make a link."""
_ENTITIES = {"<": "&lt;", "&": "&amp;"}  # not all renderers take "\<"
_NOT_IN_CODE = frozenset("\\`|<")


def escaped(text: object) -> str:
    """Return text as one line of Markdown that shows it as it stands, also in a table's cell."""
    return _MARKUP.sub(lambda m: _ENTITIES.get(m[0], f"\\{m[0]}"), _one_line(text))


def code(text: str) -> str:
    """Return text as code, where that can show it as it stands, else as `escaped` does."""
    plain = text and text == _one_line(text) and _NOT_IN_CODE.isdisjoint(text)
    return f"`{text}`" if plain else escaped(text)


def _one_line(text: object) -> str:
    return printable(" ".join(str(text).split()))
