"""Rows that a model was trained on do not test it, wherever the data and the model have gone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from sora_cli.app import run
from sora_cli.core.exit_codes import FAILED, NO_VERDICT, OK
from sora_cli.model.files import TRAINED_ON
from tests.helpers_models import tiny_bert
from tests.helpers_runs import copied_here, pair_rows, train, write_recipe, write_rows

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("here")]
SEEN, NEW = 30, 40


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs A (of other rows), B, and C, which begins with B and trains on A's rows."""
    folder = tmp_path_factory.mktemp("lineage")
    recipe = write_recipe(
        folder, tiny_bert(num_labels=2), method={"name": "lora", "r": 2}, training={"max_steps": 3}
    )
    own = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    new = pair_rows(NEW, seed=11)
    write_rows(folder / "other.jsonl", pair_rows(60, seed=12))
    # the validation rows of the recipe that tests: some of them are B's training rows
    write_rows(folder / "mixed.jsonl", own[:SEEN] + new)
    other = f"data.files.train={folder}/other.jsonl"
    train(recipe, f"output.dir={folder}/a", other)
    train(recipe, f"output.dir={folder}/b")
    train(recipe, f"output.dir={folder}/c", other, f"start.adapter={folder}/b")
    return folder


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return copied_here(made, tmp_path, monkeypatch)


def rows_that_test(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[dict[str, Any], str]:
    """Return the facts on the test rows, and all that was told."""
    capsys.readouterr()
    files = ["data.files.train=other.jsonl", "data.files.validation=mixed.jsonl"]
    command = ["verify", *words, *files, "--max-drop", "90pt", "--recipe", "tiny.yaml", "--json"]
    assert run(command) in (OK, FAILED, NO_VERDICT)
    told = capsys.readouterr()
    found: dict[str, Any] = json.loads(told.out)["rows"]["test"]
    return found, told.err


@pytest.mark.parametrize("pair", [("a", "b"), ("b", "a"), ("a", "c")])
def test_training_rows_of_either_model_or_its_parent_do_not_test(
    pair: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    found, told = rows_that_test(capsys, *pair)
    assert (found["held"], found["rows"], found["known"]) == (SEEN + NEW, NEW, True)
    assert "nothing records" not in told


def test_nor_do_those_of_a_moved_and_pruned_adapter_once_its_data_have_gone(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["prune", "b", "-o", "small", "--rank", "1"]) == OK
    shutil.move("small", "elsewhere")
    shutil.rmtree("b")
    Path("train.jsonl").unlink()
    found, _ = rows_that_test(capsys, "a", "elsewhere")
    assert (found["rows"], found["known"]) == (NEW, True)


def test_renamed_columns_hide_no_row(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = {"sentence1": "premise", "sentence2": "hypothesis"}
    for file in ("mixed.jsonl", "other.jsonl"):
        rows = [json.loads(line) for line in Path(file).read_text().splitlines()]
        write_rows(here / file, [{names.get(k, k): v for k, v in row.items()} for row in rows])
    found, _ = rows_that_test(capsys, "a", "b", "data.text_columns=[premise,hypothesis]")
    assert found["rows"] == NEW


def test_of_a_model_without_a_record_it_is_not_claimed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree("b/adapter", "unknown")
    Path("unknown", TRAINED_ON).unlink()
    found, told = rows_that_test(capsys, "a", "unknown")
    assert (found["rows"], found["known"]) == (SEEN + NEW, False)
    assert "nothing records all that" in told
    Path("unknown", TRAINED_ON).write_text("{")  # damaged: it tells nothing, either
    assert rows_that_test(capsys, "a", "unknown")[0]["known"] is False


def test_each_model_reads_rows_by_its_own_length(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A note names the lengths; a length on the command line holds for both."""
    file = Path("b/adapter/sora.json")
    facts = json.loads(file.read_text())
    facts["max_length"] = facts["row_recipe"]["data"]["max_length"] = 4
    file.write_text(json.dumps(facts))
    shutil.copytree("b/adapter", "short")
    _, told = rows_that_test(capsys, "a", "short")
    assert "each model reads rows by its own data.max_length: A " in told
    assert "B 4" in told
    assert "by its own" not in rows_that_test(capsys, "a", "short", "data.max_length=8")[1]
