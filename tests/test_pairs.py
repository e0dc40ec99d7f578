"""The cases of `tests.pairs` hold every pair, and no more of them than are needed."""

from __future__ import annotations

from dataclasses import astuple

import pytest

from tests import pairs
from tests.helpers_families import FAMILIES
from tests.helpers_methods import EXAMPLES
from tests.pairs import VERBS, all_cases, cover


def test_every_pair_is_in_a_case() -> None:
    chosen = cover(all_cases())
    together = [set(astuple(case)) for case in chosen]
    for ones, others in ((FAMILIES, EXAMPLES), (FAMILIES, VERBS), (EXAMPLES, VERBS)):
        for one in ones:
            for other in others:
                assert any({one, other} <= values for values in together), (one, other)
    assert len(set(chosen)) == len(chosen) == len(FAMILIES) * max(len(EXAMPLES), len(VERBS))
    first = chosen[: len(FAMILIES)]  # what `make test` runs
    assert {case.family for case in first} == set(FAMILIES)
    assert {case.method for case in first} == set(EXAMPLES)
    assert {case.verb for case in first} == set(VERBS)


def test_the_cover_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    pairs.main()
    lines = capsys.readouterr().out.splitlines()
    assert all(line.partition(": ")[2] for line in lines[:-1])
    assert len(lines) == len(set(lines))
