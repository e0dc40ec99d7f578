"""What a run keeps of its table."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from sora_cli.core.errors import SoraError
from sora_cli.experiments.auto.beginning import clear
from sora_cli.search.ask_table import Given, Question
from sora_cli.search.kept_answers import (
    ANSWERS,
    FOLDER,
    TABLE,
    keep_answers,
    keep_rows,
    kept_answers,
    kept_rows,
)

GIVEN: dict[str, Given] = {"bcd": ("a, b", ""), "dfg": ("", 'say "x"')}


def test_rows_and_answers_are_kept_for_the_owner_until_a_search_begins_anew(tmp_path: Path) -> None:
    assert kept_rows(tmp_path) == []
    assert kept_answers(tmp_path) == {}
    keep_rows(tmp_path, [Question(key, {"text": "raw"}, ["a"]) for key in GIVEN])
    keep_answers(tmp_path, GIVEN)
    assert kept_rows(tmp_path) == list(GIVEN)
    assert kept_answers(tmp_path) == GIVEN
    files = [tmp_path / FOLDER / name for name in (TABLE, ANSWERS)]
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    assert "raw" not in files[1].read_text()
    clear(tmp_path)
    assert not (tmp_path / FOLDER).exists()


def test_damaged_answers_are_told(tmp_path: Path) -> None:
    keep_answers(tmp_path, GIVEN)
    file = tmp_path / FOLDER / ANSWERS
    file.write_text("nothing\nx\n")
    with pytest.raises(SoraError, match="is damaged"):
        kept_answers(tmp_path)
