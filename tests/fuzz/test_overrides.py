"""Odd overrides on good recipes: refused politely, or taken for good."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given

from sora_cli.recipe.load import load_recipe
from tests.fuzz.checks import check_loading
from tests.fuzz.outcome import cases
from tests.fuzz.strategies import overrides
from tests.fuzz.test_recipes import TEXTS

LONG, SHORT = 1000, 100
VALUES = {key: value for key, value, _ in load_recipe("quickstart").values()}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("overrides") / "case.yaml"
    file.write_text(TEXTS["quickstart"], encoding="utf-8")
    return file


@given(words=overrides(VALUES))
@cases(SHORT)
def test_odd_overrides(recipe: Path, words: list[str]) -> None:
    check_loading(recipe, words)


@pytest.mark.long
def test_many_odd_overrides(recipe: Path) -> None:
    good = []

    @given(words=overrides(VALUES))
    @cases(LONG)
    def check(words: list[str]) -> None:
        good.append(check_loading(recipe, words).good)

    check()
    assert len(good) >= LONG
    assert sum(good) > LONG // 20
