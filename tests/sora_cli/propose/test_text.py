"""Recipes as text: read back, each value is what it was."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sora_cli.propose.rules import Proposed
from sora_cli.propose.text import in_yaml, recipe_text
from sora_cli.recipe.yaml_lines import parse_file

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
VALUES = st.one_of(
    TEXT, st.integers(), st.booleans(), st.none(), st.floats(allow_nan=False, allow_infinity=False),
    st.lists(TEXT, max_size=3), st.dictionaries(TEXT, TEXT, max_size=3),
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(VALUES, TEXT)
def test_values_are_read_back(value: Any, why: str) -> None:
    text = recipe_text([why], {"data": {"path": Proposed(value, why)}})
    assert parse_file(text.encode(), "a.yaml").values == {"data": {"path": value}}


@pytest.mark.parametrize(
    ("value", "text"),
    [("reviews.csv", "reviews.csv"), ("package://a/b", "package://a/b"), ("true", '"true"'),
     ("a: b", '"a: b"'), ("3e-4", '"3e-4"'), (5e-4, "0.0005"), (2e-05, "2e-5"), (1, "1"),
     ([1, "a"], "[1, a]"), ({"train": "a b"}, '{train: "a b"}'), (None, "null")],
)  # fmt: skip
def test_values_as_people_write_them(value: Any, text: str) -> None:
    assert in_yaml(value) == text
