"""What tests take is stored for each long one, and a folder that takes more is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import durations
from tests.durations import COLLECTED, Durations, exceeded
from tests.present import present


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Durations:
    monkeypatch.setattr(durations, "FILE", tmp_path / "durations.json")
    made = Durations()
    seconds = {
        "tests/a/test_x.py::one": 10.0,
        "tests/a/test_x.py::two": 0.1,
        "tests/test_y.py::z": 4.0,
    }
    made.store(seconds, {"tests/test_y.py::z"}, whole=True)
    return Durations()


def test_each_long_test_has_its_seconds(request: pytest.FixtureRequest) -> None:
    known = Durations()
    missing = [
        item.nodeid
        for item in request.config.stash[COLLECTED]
        if item.get_closest_marker("long")
        and item.nodeid.partition("::")[2]
        not in known.tests.get(item.nodeid.partition("::")[0], {})
    ]
    assert not missing, 'make durations TESTS="FILES -m long" stores them'


def test_a_whole_run_is_stored_anew_with_its_budgets(stored: Durations) -> None:
    assert stored.tests == {"tests/a/test_x.py": {"one": 10.0}, "tests/test_y.py": {"z": 4.0}}
    assert stored.rest == {"tests/a/test_x.py": 0.1}
    assert stored.budget == {"tests": 4.4, "tests/a": 11.1}
    stored.store({"tests/test_y.py::new": 1.0}, set(), whole=True)
    assert Durations().tests == {"tests/test_y.py": {"new": 1.0}}


def test_single_tests_are_added_and_the_others_stay(stored: Durations) -> None:
    stored.store({"tests/a/test_x.py::three": 0.0}, {"tests/a/test_x.py::three"}, whole=False)
    assert Durations().tests["tests/a/test_x.py"] == {"one": 10.0, "three": 0.0}
    assert Durations().budget == stored.budget


def test_a_short_test_that_became_quick_loses_its_line(stored: Durations) -> None:
    stored.store({"tests/a/test_x.py::one": 0.01}, set(), whole=False)
    assert Durations().tests["tests/a/test_x.py"] == {}


def test_only_the_folder_that_grew_is_named_on_a_slower_machine(stored: Durations) -> None:
    slow = {"tests/a/test_x.py::one": 20.0, "tests/test_y.py::z": 8.0, "tests/test_y.py::new": 3.0}
    pace, named = exceeded(slow, stored)
    assert "2.00 times" in pace
    assert named.startswith("tests takes 11 s")
    slow.pop("tests/test_y.py::new")
    assert len(exceeded(slow, stored)) == 1


def test_a_test_stops_at_twenty_times_its_seconds(request: pytest.FixtureRequest) -> None:
    known = Durations()
    assert request.config.stash[COLLECTED]
    for item in request.config.stash[COLLECTED]:
        marker = present(item.get_closest_marker("timeout"))
        assert marker.args[0] >= 600
        assert marker.args[0] >= 20 * known.of(item.nodeid)


def test_the_file_has_no_test_of_a_file_that_is_gone() -> None:
    stored = json.loads(durations.FILE.read_text(encoding="utf-8"))
    root = durations.FILE.parent.parent
    gone = {
        file for part in ("tests", "rest") for file in stored[part] if not (root / file).exists()
    }
    assert not gone, "make durations"
