"""Stored recipes of earlier versions: the values of the present version that do what they did."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sora_cli.recipe.changes import changes, of_its_time
from sora_cli.recipe.load import load_recipe, load_stored

FILES = {"files": {"train": ["a.csv"]}}


def resolved(**data: Any) -> dict[str, Any]:
    words = [f"data.{key}={value}" for key, value in data.items()]
    loaded = load_recipe("quickstart", words)
    values = loaded.resolved()
    del values["data"]["repeats"]
    return values


@pytest.mark.parametrize(
    ("data", "rule"),
    [
        ({}, None),
        ({"held_out_rows": 20}, "separate"),
        ({"selection": "train-rows"}, "separate"),
        ({"selection": "half-validation"}, "separate"),
    ],
)
def test_rows_are_dealt_as_they_were(data: dict[str, Any], rule: str | None) -> None:
    stored = resolved(**data)
    assert of_its_time(stored)["data"].get("repeats") == rule
    now = load_recipe("quickstart", [f"data.{key}={value}" for key, value in data.items()])
    assert now.continuing(stored).recipe.data.repeats == (rule or "together")
    assert changes(stored, now.continuing(stored).resolved()) == []
    told = [("data.repeats", "separate", "together")] if rule else []
    assert changes(stored, now.resolved()) == told


def test_a_name_beside_files_did_nothing() -> None:
    stored = resolved()
    stored["data"] |= {**FILES, "path": "", "name": "rte", "revision": "main"}
    loaded = load_stored(stored, Path("report.json"), "x")
    assert (loaded.recipe.data.name, loaded.recipe.data.revision) == (None, None)
    stored["data"] |= {"files": None, "path": "owner/rows"}
    assert load_stored(stored, Path("report.json"), "x").recipe.data.name == "rte"
