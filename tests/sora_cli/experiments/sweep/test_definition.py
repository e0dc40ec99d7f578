"""Sweep files: what is refused, and where the message points."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sora_cli.core.errors import SoraError
from sora_cli.experiments.sweep.definition import load_sweep
from tests.sora_cli.experiments.sweep.support import write_sweep

RANGE = {"low": 1e-4, "high": 1e-2, "log": True}


@pytest.mark.parametrize(
    ("blocks", "what", "place"),
    [
        ({"gird": {}}, "unknown key 'gird'", ":2"),
        ({"training.epochs": 3}, "unknown key 'training.epochs'", ":2"),
        ({"grid": {"training.seed": 3}}, "grid.training.seed: Input should be a valid list", ":3"),
        ({"grid": {"training.seed": []}}, "grid.training.seed", ":3"),
        ({"kind": "walk"}, "kind: Input should be 'train', 'path' or 'auto'", ":2"),
        (
            {"paired": {"data.name": ["rte", "cola"], "training.epochs": [1]}},
            "lists in paired must have the same length: data.name has 2, training.epochs has 1",
            "",
        ),
        (
            {"grid": {"training.seed": [0]}, "cases": {"a": {"training.seed": 1}}},
            "training.seed is set in grid and in case a",
            "",
        ),
        (
            {"grid": {"training.seed": [0]}, "paired": {"training.seed": [1]}},
            "training.seed is set in grid and in paired",
            "",
        ),
        ({"recipe": ""}, "no recipe is named", ""),
        (
            {"search": {"space": {"method.threshold": RANGE}}, "cases": {"a": {}}},
            "search cannot be combined with grid, paired or cases",
            "",
        ),
        (
            {
                "search": {
                    "space": {"method.threshold": RANGE},
                    "objectives": ["metric", "parameters"],
                    "pruning": True,
                }
            },
            "pruning needs a single objective",
            ":2",
        ),
        (
            {"search": {"space": {"method.threshold": {"low": 1, "choices": [1, 2]}}}},
            "give low and high, or choices",
            ":4",
        ),
        (
            {"search": {"space": {"method.threshold": {"low": 2, "high": 1}}}},
            "low must be below high",
            ":4",
        ),
        (
            {"search": {"space": {"method.r_max": {"choices": [2, 4, 2]}}}},
            "choices hold a value twice",
            ":4",
        ),
        ({"search": {"space": {}, "trails": 3}}, "search.space", ":3"),
    ],
)
def test_refused(tmp_path: Path, blocks: dict[str, Any], what: str, place: str) -> None:
    path = write_sweep(tmp_path, **blocks)
    with pytest.raises(SoraError) as caught:
        load_sweep(path)
    assert what in caught.value.what
    assert caught.value.where == f"{path}{place}"
    assert len(caught.value.lines()) <= 3


def test_names_the_nearest_key(tmp_path: Path) -> None:
    with pytest.raises(SoraError) as caught:
        load_sweep(write_sweep(tmp_path, gird={}))
    assert caught.value.hint == "did you mean 'grid'?"
    with pytest.raises(SoraError) as caught:
        load_sweep(write_sweep(tmp_path, search={"space": {"a.b": RANGE}, "trails": 3}))
    assert caught.value.hint == "did you mean 'trials'?"


def test_no_such_file(tmp_path: Path) -> None:
    write_sweep(tmp_path)
    with pytest.raises(SoraError) as caught:
        load_sweep(tmp_path / "swep.yaml")
    assert str(caught.value.hint).startswith("did you mean")


def test_whole_numbers_stay_whole(tmp_path: Path) -> None:
    space = {"method.r_max": {"low": 2, "high": 8}, "method.threshold": RANGE}
    search = load_sweep(write_sweep(tmp_path, search={"space": space})).sweep.search
    assert search is not None
    assert search.space["method.r_max"].whole
    assert not search.space["method.threshold"].whole
