"""The tables of alphas and rates: who chooses, what is reported, and what the page shows."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from tests.shared_files import ROOT
from tools.alpha import (
    Scores,
    best,
    chosen_table,
    main,
    mean_table,
    means,
)


def test_rows_held_out_choose_and_reported_rows_are_shown() -> None:
    scores = {(4.0, 1e-3): (90.0, 70.0), (4.0, 3e-3): (89.0, 80.0), (16.0, 1e-3): (91.0, 60.0)}
    assert best(scores) == (16.0, 1e-3)
    assert best(scores, 4.0) == (4.0, 1e-3)
    lines = chosen_table({8: {"stsb": scores}}).splitlines()
    assert lines[2] == "| r 8 | stsb | 70.00 (0.001) | 60.00 (0.001) | 60.00 (16, 0.001) |"
    assert lines[3] == "| r 8 | mean | 70.00 | 60.00 | 60.00 |"


def test_means_are_of_places_that_all_tasks_have() -> None:
    tasks: Mapping[str, Scores] = {
        "a": {(4.0, 1e-3): (90.0, 0.0), (4.0, 3e-3): (80.0, 0.0)},
        "b": {(4.0, 1e-3): (80.0, 0)},
    }
    assert means(tasks) == {(4.0, 1e-3): 85.0}
    assert mean_table(means(tasks)).splitlines()[2] == "| 4 | 85.0 |"


@pytest.mark.parametrize("runs", [[], ["docs/results/alpha.jsonl/cpu-alpha-long"]])
def test_the_page_has_the_tables_that_are_printed(
    runs: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("sys.argv", ["alpha", *runs])
    main()
    printed = capsys.readouterr().out.strip()
    assert printed in (ROOT / "docs" / "results" / "alpha.md").read_text(encoding="utf-8")
