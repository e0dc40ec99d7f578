"""Write a recipe as YAML for people, with the reason beside or above each value."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sora_cli.core.console import printable
from sora_cli.propose.rules import Proposed

_WIDTH = 100
_PLAIN = re.compile(r"[A-Za-z_][\w./-]*(://[\w./-]+)?")
_NO_TEXT = re.compile(r"true|false|null|~", re.IGNORECASE)
Blocks = Mapping[str, Mapping[str, Proposed]]


def recipe_text(header: Sequence[str], blocks: Blocks) -> str:
    """Return a recipe as YAML.

    Args:
        header: sentences for the comment on top.
        blocks: block -> key -> value and reason; an empty reason gives no comment.
    """
    lines = [line for sentence in header for line in _comment(sentence, "")]
    for block, values in blocks.items():
        lines += ["", f"{block}:"] if lines else [f"{block}:"]
        for key, proposed in values.items():
            lines += _lines(key, proposed)
    return "\n".join(lines) + "\n"


def in_yaml(value: Any) -> str:
    """Return a value as YAML in one line."""
    match value:
        case str():
            plain = _PLAIN.fullmatch(value) and not _NO_TEXT.fullmatch(value)
            return value if plain else "".join(map(_escaped, json.dumps(value, ensure_ascii=False)))
        case Mapping():
            return "{" + ", ".join(f"{in_yaml(k)}: {in_yaml(v)}" for k, v in value.items()) + "}"
        case list() | tuple():
            return "[" + ", ".join(map(in_yaml, value)) + "]"
        case float():
            # 5e-05 becomes 5e-5; recipes are read by YAML 1.2, where that is a number without a dot
            text = f"{value:g}"
            return re.sub(r"e([-+])0", r"e\1", text) if float(text) == value else repr(value)
    return json.dumps(value)


def _escaped(character: str) -> str:
    """Return a character of a quoted text; unprintable characters as YAML escapes."""
    return character if character.isprintable() else f"\\U{ord(character):08x}"


def _lines(key: str, proposed: Proposed) -> Iterator[str]:
    line = f"  {key}: {in_yaml(proposed.value)}"
    if not proposed.why:
        yield line
    elif len(line) + len(proposed.why) + 3 <= _WIDTH:
        yield f"{line} # {printable(proposed.why)}"
    else:
        yield from _comment(proposed.why, "  ")
        yield line


def _comment(text: str, indent: str) -> Iterator[str]:
    mark = f"{indent}# "
    yield from textwrap.wrap(
        printable(text), _WIDTH, initial_indent=mark, subsequent_indent=mark,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip
