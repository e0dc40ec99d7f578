"""Sweep files: what is refused, and where the message points."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sora_cli.experiments.sweep.definition import load_sweep
from tests.helpers_errors import refusal
from tests.present import present
from tests.sora_cli.experiments.sweep.support import write_sweep

RANGE = {"low": 1e-4, "high": 1e-2, "log": True}


@pytest.mark.parametrize(
    "blocks",
    [
        {"gird": {}},
        {"training.epochs": 3},
        {"grid": {"training.seed": 3}},
        {"grid": {"training.seed": []}},
        {"kind": "walk"},
        {"paired": {"data.name": ["rte", "cola"], "training.epochs": [1]}},
        {"grid": {"training.seed": [0]}, "cases": {"a": {"training.seed": 1}}},
        {"grid": {"training.seed": [0]}, "paired": {"training.seed": [1]}},
        {"recipe": ""},
        {"search": {"space": {"method.threshold": RANGE}}, "cases": {"a": {}}},
        {
            "search": {
                "space": {"method.threshold": RANGE},
                "objectives": ["metric", "parameters"],
                "pruning": True,
            }
        },
        {"search": {"space": {"method.threshold": {"low": 1, "choices": [1, 2]}}}},
        {"search": {"space": {"method.threshold": {"low": 2, "high": 1}}}},
        {"search": {"space": {"method.r_max": {"choices": [2, 4, 2]}}}},
        {"search": {"space": {}, "trails": 3}},
    ],
    ids=str,
)
def test_refused(
    tmp_path: Path,
    blocks: dict[str, Any],
) -> None:
    path = write_sweep(tmp_path, **blocks)
    with refusal():
        load_sweep(path)


def test_names_the_nearest_key(tmp_path: Path) -> None:
    with refusal():
        load_sweep(write_sweep(tmp_path, gird={}))
    with refusal():
        load_sweep(write_sweep(tmp_path, search={"space": {"a.b": RANGE}, "trails": 3}))


def test_no_such_file(tmp_path: Path) -> None:
    write_sweep(tmp_path)
    with refusal():
        load_sweep(tmp_path / "swep.yaml")


def test_whole_numbers_stay_whole(tmp_path: Path) -> None:
    space = {"method.r_max": {"low": 2, "high": 8}, "method.threshold": RANGE}
    search = present(load_sweep(write_sweep(tmp_path, search={"space": space})).sweep.search)
    assert search.space["method.r_max"].whole
    assert not search.space["method.threshold"].whole
