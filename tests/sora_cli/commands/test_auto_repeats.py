"""`sora auto` on rows that repeat: what tests, what is said, and searches of earlier versions."""

from __future__ import annotations

import json
import random
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from sora_cli.adapter.digest import result_digest
from sora_cli.app import run
from sora_cli.data.rows import load_rows
from sora_cli.experiments.auto.record import read_auto
from sora_cli.recipe.load import load_recipe, load_stored
from sora_cli.report import read_report
from sora_cli.run.prepare import load_task
from tests.helpers_runs import pair_rows, signal_at, write_rows
from tests.sora_cli.experiments.auto.support import auto_recipe, certificate_of

STOCK = 6  # inputs that are repeated ten times each, beside 100 others


def rows_with_stock() -> list[dict[str, Any]]:
    rows = pair_rows(100 + STOCK, seed=3)
    made = [*rows[STOCK:], *(row for row in rows[:STOCK] for _ in range(10))]
    random.Random(0).shuffle(made)
    return made


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("repeats")
    path = auto_recipe(folder, auto={"rows": 80})
    write_rows(folder / "train.jsonl", rows_with_stock())
    return path


@pytest.fixture(scope="module")
def done(recipe: Path) -> Path:
    assert run(["auto", str(recipe), "--no-verify"]) in (0, 3)
    return recipe.parent / "out"


def texts(rows: Any) -> list[str]:
    return [f"{row['sentence1']} | {row['sentence2']}" for row in rows]


def test_no_test_row_is_trained_on_and_none_counts_twice(done: Path) -> None:
    found = certificate_of(done)
    report = read_report(done)
    assert report is not None
    assert report.recipe["data"]["repeats"] == "together"
    stored = load_stored(report.recipe, done / "report.json", "x").recipe
    rows = load_task(stored)[1]
    assert not set(texts(rows.train)) & set(texts(rows.select))
    held, screening = found.rows["test"], found.rows["screening"]
    assert held.held is not None
    assert held.rows < held.held
    assert held.held + screening.rows == len(rows.select)
    assert held.rows + (screening.inputs or 0) == len(set(texts(rows.select)))
    assert f"on {held.rows} distinct inputs that training has not seen" in found.statement
    share = (held.held - held.rows) / held.held
    assert f"{share:.1%} of the {held.held} test rows repeat an input" in found.statement
    assert found.written.test is not None
    assert found.written.test.every is not None
    assert "over all of them as they come" in found.statement


def test_the_certificate_is_scored_again(done: Path) -> None:
    assert run(["verify", str(done), "--certificate"]) == 0


def test_the_numbers_of_rows_are_not_believed(done: Path, tmp_path: Path) -> None:
    shutil.copytree(done, tmp_path / "run")
    place = tmp_path / "run/certificate.json"
    for key, value in (("held", None), ("rows", 60)):
        text = json.loads((done / "certificate.json").read_text())
        text["rows"]["test"][key] = value
        place.write_text(json.dumps(text))
        assert run(["verify", str(tmp_path / "run"), "--certificate"]) == 1


def of_earlier(value: Any) -> Any:
    """A stored document without the keys that versions before `data.repeats` did not have."""
    if isinstance(value, list):
        return [of_earlier(one) for one in value]
    if not isinstance(value, dict):
        return value
    return {k: of_earlier(v) for k, v in value.items() if k not in {"repeats", "held", "inputs"}}


def as_earlier(run_folder: Path) -> None:
    for file in run_folder.rglob("*.json"):
        if file.name in {"auto.json", "report.json", "certificate.json"}:
            file.write_text(json.dumps(of_earlier(json.loads(file.read_text()))))


def test_a_search_of_an_earlier_version_is_checked_as_it_was_made(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "earlier"
    words = [f"output.dir={out}", "--no-verify"]
    assert run(["auto", str(recipe), "data.repeats=separate", *words]) in (0, 3)
    as_earlier(out)
    stored = read_report(out)
    assert stored is not None
    assert "repeats" not in stored.recipe["data"]
    rows = load_task(load_stored(stored.recipe, out / "report.json", "x").recipe)[1]
    assert set(texts(rows.train)) & set(texts(rows.select))  # dealt row by row
    capsys.readouterr()
    assert run(["verify", str(out), "--certificate"]) == 0
    assert "rows that repeat an input were not kept apart" in capsys.readouterr().out


def test_a_search_of_an_earlier_version_goes_on_as_it_began(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same command continues it, although the key's default is another one now."""
    whole, part = tmp_path / "whole", tmp_path / "part"
    command = ["auto", str(recipe), "--no-verify"]
    assert run([*command, "data.repeats=separate", f"output.dir={whole}"]) in (0, 3)
    with monkeypatch.context() as patched:
        signal_at(patched, 15)
        code = run([*command, "data.repeats=separate", f"output.dir={part}"])
    assert code == 128 + signal.SIGTERM
    as_earlier(part)
    assert run([*command, f"output.dir={part}"]) in (0, 3)
    record = read_auto(part)
    assert record is not None
    assert record.rows["test"].held is None
    for name in (".", "sizes/full", "sizes/1"):
        assert result_digest(part / name / "adapter") == result_digest(whole / name / "adapter")


def test_what_is_typed_is_not_replaced(recipe: Path) -> None:
    loaded = load_recipe(recipe)
    earlier = of_earlier(loaded.resolved())
    assert loaded.recipe.data.repeats == "together"
    assert loaded.continuing(None).recipe.data.repeats == "together"
    assert loaded.continuing(loaded.resolved()).recipe.data.repeats == "together"
    assert loaded.continuing(earlier).recipe.data.repeats == "separate"
    typed = load_recipe(recipe, ["data.repeats=together"])
    assert typed.continuing(earlier).recipe.data.repeats == "together"
    assert load_stored(earlier, recipe, "x").recipe.data.repeats == "separate"
    assert load_rows(loaded.recipe.data.model_copy(update={"repeats": "separate"})).train


def test_a_dry_run_counts_the_inputs(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["auto", str(recipe), "--dry-run", "output.dir=elsewhere"]) == 0
    out, said = capsys.readouterr()
    assert "repeat another one" in said
    numbers = certificate_of(recipe.parent / "out").rows["test"].rows
    assert f"{numbers} test them" in out
