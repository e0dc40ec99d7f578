"""Workarounds for other projects' faults say when to look again, and are not kept longer.

`# until: transformers 5.18` stands at code that versions before 5.18 need. `# until: transformers >
5.24` stands at code that 5.24 still needs, and that nobody has tried without in a newer one. The
thread of the fault follows in brackets. A rise of the lower bound in pyproject.toml then fails
here: take the code out, or raise the version in its line.
"""

from __future__ import annotations

import re
import tokenize
from collections.abc import Iterator, Mapping

import pytest
from packaging.version import Version

from tests.shared_files import ROOT
from tools.bounds import lower_bounds

UNTIL = re.compile(r"# until: ([\w-]+) (> )?(\d+(?:\.\d+)+)(?: \([\w.-]+/[\w.-]+#\d+\))?")


def _comments() -> Iterator[tuple[str, str]]:
    """Each such comment with its place."""
    for package in ("methods", "sora_cli"):
        for file in sorted((ROOT / package).rglob("*.py")):
            if b"# until:" not in file.read_bytes():
                continue  # tokens take seconds
            with file.open("rb") as stream:
                for token in tokenize.tokenize(stream.readline):
                    if token.type == tokenize.COMMENT and "until:" in token.string:
                        yield f"{file.relative_to(ROOT)}:{token.start[0]}", token.string


def overdue(comment: str, bounds: Mapping[str, str]) -> bool:
    """Tell whether every version that may be installed is past the comment's."""
    match = UNTIL.fullmatch(comment)
    assert match is not None, f"not as in this file's head: {comment}"
    name, beyond, last = match[1], match[2] is not None, Version(match[3]).release
    lowest = Version(bounds[name]).release[: len(last)]
    return lowest > last if beyond else lowest >= last


def test_none_is_overdue() -> None:
    bounds = lower_bounds()
    comments = list(_comments())
    assert len(comments) > 20
    assert [where for where, comment in comments if overdue(comment, bounds)] == []


@pytest.mark.parametrize(
    ("comment", "bound", "expected"),
    [
        ("# until: one 5.18", "5.17.9", False),
        ("# until: one 5.18 (owner/One-1#23)", "5.18", True),
        ("# until: one > 5.24", "5.24", False),
        ("# until: one > 5.24 (owner/one#23)", "5.24.1", False),
        ("# until: one > 5.24", "5.25", True),
        ("# until: one > 5.24", "6", True),
    ],
)
def test_a_bound_that_reaches_the_version(comment: str, bound: str, expected: bool) -> None:
    assert overdue(comment, {"one": bound}) is expected


def test_another_form_is_refused() -> None:
    with pytest.raises(AssertionError, match="not as in"):
        overdue("# until: it is mended", {})
