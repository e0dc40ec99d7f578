"""What others wrote, in Markdown: a renderer shows it as it stands, and nothing else."""

from __future__ import annotations

import pytest

from sora_cli.core.console import printable
from sora_cli.core.markdown import code, escaped
from tests.helpers_markdown import HOSTILE, tokens


def _shown(cell: str) -> str:
    """What stands in the one cell of a table; there is nothing but text, or code, in it."""
    parts = list(tokens(f"| x |\n| --- |\n| {cell} |\n"))
    assert [part.type for part in parts].count("td_open") == 1
    (inline,) = [part for part in parts if part.type == "inline"][1:]
    assert {part.type for part in inline.children or ()} <= {"text", "text_special", "code_inline"}
    return "".join(part.content for part in inline.children or ())


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("form", [escaped, code])
def test_text_is_shown_as_it_stands(form: type[str], text: str) -> None:
    assert _shown(form(text)) == printable(" ".join(text.split()))


@pytest.mark.parametrize(
    "text", ["r_max 3, l1 0.5", "a, b & c", "q_proj", "yes/no (maybe)", "é", "-0.1 [-2, 3] (3)"]
)
def test_plain_text_stays_readable(text: str) -> None:
    assert escaped(text) == text
    assert code(text) == f"`{text}`"
