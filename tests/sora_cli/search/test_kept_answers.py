"""What is remembered of a table."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from sora_cli.core.errors import SoraError
from sora_cli.experiments.auto.beginning import clear
from sora_cli.search.ask_table import Given, Question
from sora_cli.search.kept_answers import Kept

GIVEN: dict[str, Given] = {"bcd": ("a, b", ""), "dfg": ("", 'say "x"')}


def test_ids_and_answers_are_kept_for_the_owner_until_a_search_begins_anew(tmp_path: Path) -> None:
    kept = Kept.of(tmp_path)
    assert kept.rows() == []
    assert kept.answers() == {}
    kept.keep_rows([Question(key, {"text": "raw"}, ["a"]) for key in GIVEN])
    kept.keep_answers(GIVEN)
    assert kept.rows() == list(GIVEN)
    assert kept.answers() == GIVEN
    assert stat.S_IMODE(kept.path.stat().st_mode) == 0o600
    assert "raw" not in kept.path.read_text()
    clear(tmp_path)
    assert not kept.path.exists()


def test_damaged_answers_are_told(tmp_path: Path) -> None:
    kept = Kept.beside(tmp_path / "ask.csv")
    kept.keep_answers(GIVEN)
    assert kept.path.name == "ask.csv.json"
    kept.path.write_text('{"answers": 1}')
    with pytest.raises(SoraError, match="is damaged"):
        kept.answers()
