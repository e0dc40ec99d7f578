"""`sora auto --ask` with the families whose labels are a short list, and with three classes."""

from __future__ import annotations

import csv
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest

from sora_cli.app import run
from sora_cli.core.exit_codes import LABELS_WANTED, NO_VERDICT, OK
from tests.helpers_chat import instruct_rows
from tests.helpers_errors import refused
from tests.helpers_families import (
    choice_rows,
    preference_rows,
    thumb_rows,
    write_family_recipe,
    write_preference_recipe,
)
from tests.helpers_models import tiny_bert_for
from tests.helpers_runs import save_base, write_rows
from tests.sora_cli.experiments.auto.support import certificate_of

BLOCKS: dict[str, Any] = {
    "training": {"epochs": 4, "batch_size": 8, "gradient_accumulation": 1, "learning_rate": 0.03},
}


def choices(folder: Path) -> Path:
    files = {
        "train": write_rows(folder / "train.jsonl", choice_rows(96)),
        "validation": write_rows(folder / "validation.jsonl", choice_rows(16, seed=1)),
    }
    base = save_base(tiny_bert_for("MultipleChoice"), folder / "base")
    write_rows(folder / "inputs.jsonl", [
        {k: v for k, v in row.items() if k != "label"} for row in choice_rows(90, seed=2)
    ])  # fmt: skip
    task = {"name": "multiple-choice"}
    return write_family_recipe(
        folder, model={"path": str(base)}, task=task, data={"files": files}, **BLOCKS
    )


def pairs(folder: Path) -> Path:
    """Of the rows to be labelled nobody has said which answer is the better one."""
    asked = [
        {"prompt": row["prompt"], "answer_a": row["rejected"], "answer_b": row["chosen"]}
        for row in preference_rows(90, seed=2)
    ]
    write_rows(folder / "inputs.jsonl", asked)
    return write_preference_recipe(folder, **BLOCKS)


def thumbs(folder: Path) -> Path:
    write_rows(folder / "inputs.jsonl", [
        {k: v for k, v in row.items() if k != "label"} for row in thumb_rows(90, seed=2)
    ])  # fmt: skip
    recipe = write_preference_recipe(folder, **BLOCKS, task={"name": "thumbs"})
    write_rows(folder / "train.jsonl", thumb_rows(96))
    write_rows(folder / "validation.jsonl", thumb_rows(16, seed=1))
    return recipe


def _right_choice(row: dict[str, str]) -> str:
    first = row["context"].split()[0]
    return next(letter for letter in "abc" if row[letter].split()[0] == first)


def _better_answer(row: dict[str, str]) -> str:
    end = " ".join(row["prompt"].split()[-2:])
    return "a" if row["answer_a"].strip() == end else "b"


def _thumb(row: dict[str, str]) -> str:
    right = row["completion"].strip() == " ".join(row["prompt"].split()[-2:])
    return "up" if right else "down"


@pytest.mark.long
@pytest.mark.parametrize(
    ("write", "shown", "truth"),
    [
        (choices, ["context", "a", "b", "c"], _right_choice),
        (pairs, ["prompt", "answer_a", "answer_b"], _better_answer),
        (thumbs, ["prompt", "completion"], _thumb),
    ],
)
def test_choices_and_pairs_are_labelled(
    tmp_path: Path,
    write: Callable[[Path], Path],
    shown: list[str],
    truth: Callable[[dict[str, str]], str],
) -> None:
    recipe = write(tmp_path)
    given = ["--max-drop", "12pt", "--unlabelled", "inputs.jsonl", "--ask", "ask.csv"]
    command = ["auto", recipe.name, *given, "--no-verify", "output.dir=out"]
    with chdir(tmp_path):
        code = run(command)
        assert code == LABELS_WANTED
        while code == LABELS_WANTED:  # a round for each size
            with Path("ask.csv").open(encoding="utf-8-sig", newline="") as file:
                rows = list(csv.DictReader(file))
            assert list(rows[0]) == ["id", *shown, "label", "label_2", "allowed"]
            for row in rows:
                row["label"] = truth(row)
            with Path("ask.csv").open("w", encoding="utf-8", newline="") as file:
                table = csv.DictWriter(file, list(rows[0]))
                table.writeheader()
                table.writerows(rows)
            code = run(command)
        assert code in (OK, NO_VERDICT)
        assert run(["verify", "out", "--certificate"]) == OK
    found = certificate_of(tmp_path / "out")
    assert found.asked is not None
    assert found.asked.answered == len(rows)
    counts = [size.test.labelled for size in found.candidates if size.test is not None]
    assert counts[-1] is not None
    assert counts[-1].lost + counts[-1].won > 0


@pytest.mark.long
def test_texts_are_no_short_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_rows(tmp_path / "inputs.jsonl", instruct_rows(40, seed=3))
    with chdir(tmp_path):
        told = refused(
            capsys, "auto", "offline/instruct", "task.metrics=[exact_match]", "--max-drop", "9pt",
            "--unlabelled", "inputs.jsonl", "--ask", "ask.csv", "output.dir=out",
        )  # fmt: skip
    assert "no labels can be asked for: exact_match compares texts" in told[0]
