"""Promises whose command is killed inside a write: the same command ends as if it had not been."""

from __future__ import annotations

from pathlib import Path

import pytest

from sora_cli.app import run
from sora_cli.core.exit_codes import OK
from tests.helpers_killed import run_killed
from tests.sora_cli.commands.promises import ANSWERS, BY_ANSWERS, LABELS, Made, same_end

pytestmark = pytest.mark.xdist_group("promises")

KILLS = {
    f"auto {LABELS}": [
        ("sizes/full/checkpoints", 2),
        ("sizes/full/.adapter", 1),
        ("sizes/full/.state", 1),
        ("auto.json", 2),  # after the full run
        ("auto.json", 3),  # after the screening
        ("sizes/1/checkpoints", 1),
        ("sizes/1/adapter:rename", 1),
        ("sizes/2/.report", 2),
        ("out/.adapter", 1),
        ("certificate.json", 1),
        ("curve.png", 1),
    ],
    f"auto {ANSWERS}": [("auto.json", 3), ("sizes/2/.report", 2)],
    f"auto {BY_ANSWERS}": [("auto.json", 3), ("sizes/2/.report", 2)],
    f"heal {LABELS}": [  # the first size, the copy of the chosen one, and the record of all
        ("/adapter:rename", 1),
        ("/adapter:rename", 4),
        ("sizes.json", 1),
        ("sizes.json:rename", 1),
    ],
}


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "kind", "number"), [(name, *kill) for name, kills in KILLS.items() for kill in kills]
)
def test_killed_at_any_moment(made: Made, kind: str, number: int, tmp_path: Path) -> None:
    words = made.line(tmp_path / "out")
    run_killed(kind, number, *words)
    assert run([*words, *(["--resume"] if made.kind.command == "heal" else [])]) == OK
    same_end(made.out, tmp_path / "out")
