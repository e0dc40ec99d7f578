"""The gate of `sora verify A B` on rows of families whose answers need more than the model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from sora_cli.app import run
from sora_cli.core.exit_codes import FAILED, NO_VERDICT, OK
from tests.helpers_errors import refused
from tests.helpers_families import (
    FAMILIES,
    preference_rows,
    thumb_rows,
    write_preference_recipe,
)
from tests.helpers_runs import train, write_rows


@pytest.mark.long
@pytest.mark.parametrize(
    ("task", "make", "answer"),
    [("thumbs", thumb_rows, "prediction"), ("preference", preference_rows, "prefers")],
)
def test_answers_without_labels_are_measured_against_the_reference(
    task: str,
    make: Callable[..., list[dict[str, Any]]],
    answer: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = write_preference_recipe(tmp_path, task={"name": task}, method={"threshold": 0.0})
    write_rows(tmp_path / "train.jsonl", make(48))
    write_rows(tmp_path / "validation.jsonl", make(16, seed=1))
    rows = [{k: v for k, v in row.items() if k != "label"} for row in make(60, seed=2)]
    write_rows(tmp_path / "rows.jsonl", rows)
    answers = []
    for name, steps in (("a", 2), ("b", 6)):
        train(recipe, f"output.dir={name}", f"training.max_steps={steps}",
              "training.learning_rate=0.05")  # fmt: skip
        assert run(["predict", name, "rows.jsonl", "-o", f"{name}.jsonl"]) == OK
        lines = (tmp_path / f"{name}.jsonl").read_text().splitlines()
        answers.append([json.loads(line)[answer] for line in lines])
    differing = sum(one != other for one, other in zip(*answers, strict=True))
    assert 0 < differing < len(rows)
    for more in ([], ["--recipe", str(recipe)]):
        capsys.readouterr()
        words = ["verify", "a", "b", "--max-differ", "50%", "--unlabelled", "rows.jsonl", *more]
        assert run([*words, "--json"]) in (OK, FAILED, NO_VERDICT)
        found = json.loads(capsys.readouterr().out)
        (b,) = found["candidates"]
        assert round(b["test"]["every"] * len(rows)) == differing
    assert run(["merge", "a", "-o", "merged", "--no-verify"]) == OK
    words[1] = "merged"
    assert run(words) in (OK, FAILED, NO_VERDICT)  # the recipe names the base
    refused(capsys, *words[:-2])
    (tmp_path / "merged" / "sora.json").unlink()
    refused(capsys, *words[:-2], f"task.name={task}")


@pytest.mark.long
@pytest.mark.parametrize(
    ("kind", "promise"),
    [
        ("causal-lm", ["--max-drop", "50pt", "task.best_metric=exact_match"]),
        ("token-classification", ["--max-drop", "50pt"]),
        # the text of a broken model is empty
        ("seq2seq", ["--max-differ", "50%", "--unlabelled", "validation.jsonl"]),
        (
            "multiple-choice",
            ["--max-drop", "30pt", "--unlabelled", "validation.jsonl", "--ask", "ask.csv"],
        ),
    ],
)
def test_a_model_whose_outputs_are_not_finite_is_refused(
    kind: str,
    promise: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = FAMILIES[kind](tmp_path)
    train(recipe, "output.dir=sound", "training.max_steps=2", "method.name=lora")
    shutil.copytree("sound/adapter", "broken")
    file = tmp_path / "broken" / "adapter_model.safetensors"
    large = {name: t + 1e38 if "lora" in name else t for name, t in load_file(file).items()}
    save_file(large, file, {"format": "pt"})
    for pair in (["sound", "broken"], ["broken", "sound"]):
        refused(capsys, "verify", *pair, *promise, "--recipe", recipe.name)
