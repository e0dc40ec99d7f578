"""Commands in any order on one directory: what each writes, refuses and leaves alone."""

from __future__ import annotations

import pytest
from hypothesis.stateful import run_state_machine_as_test

from tests.machine.machine import SEQUENCES, Machine, drawn, replay, work_in


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> type[Machine]:
    return work_in(tmp_path_factory.mktemp("machine"))


LONG = ("cuts", "stops")
NAMES = [
    pytest.param(file.stem, marks=pytest.mark.long if file.stem in LONG else ())
    for file in sorted(SEQUENCES.glob("*.txt"))
]


@pytest.mark.parametrize("name", NAMES)
def test_steps_that_were_kept(machine: type[Machine], name: str) -> None:
    replay(machine, SEQUENCES / f"{name}.txt")


def test_a_few_drawn_steps(machine: type[Machine]) -> None:
    run_state_machine_as_test(machine, settings=drawn(2, 8))


@pytest.mark.long
def test_many_drawn_steps(machine: type[Machine]) -> None:
    run_state_machine_as_test(machine, settings=drawn(12, 20))
