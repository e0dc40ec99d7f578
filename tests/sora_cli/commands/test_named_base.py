"""A base model with other weights: used and told where it is named, or refused."""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from sora_cli.app import run
from sora_cli.recipe.load import load_recipe
from tests.helpers_errors import refused
from tests.helpers_families import FAMILIES
from tests.helpers_models import tiny_bert, tiny_llama
from tests.helpers_runs import Trained, save_base, train

OTHER = "holds other weights than the base model of"


@pytest.fixture(scope="module")
def made(classifier: Trained, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The places of a run of a classifier, and of another base model."""
    other = save_base(tiny_bert(num_labels=2, seed=1), tmp_path_factory.mktemp("other"))
    places = {"recipe": classifier.recipe, "run": classifier.run, "merged": classifier.merged,
              "rows": classifier.folder / "train.jsonl", "base": classifier.folder / "base",
              "other": other}  # fmt: skip
    return SimpleNamespace(**{name: str(place) for name, place in places.items()})


def used(made: SimpleNamespace, out: Path) -> list[list[str]]:
    """The commands that put a result to work on a base, which comes next."""
    return [
        ["eval", made.run, "-r", made.recipe, "--json", "model.path="],
        ["predict", made.run, made.rows, "-o", str(out / "p.jsonl"), "--force", "--json", "--base"],
    ]


def on(command: list[str], base: str) -> list[str]:
    *words, last = command
    return [*words, f"{last}{base}"] if last.endswith("=") else [*command, base]


def test_it_is_used_and_told_where_answers_are_asked_for(
    made: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in used(made, tmp_path):
        capsys.readouterr()
        assert run(on(command, made.base)) == 0
        plain, err = capsys.readouterr()
        assert OTHER not in err
        assert not json.loads(plain).get("notes")
        assert run(on(command, made.other)) == 0
        told, err = capsys.readouterr()
        (note,) = json.loads(told)["notes"]
        assert f"{made.other} {OTHER}" in note
        assert f"note: {note}" in err.splitlines()
        if command[0] == "eval":
            scores = [json.loads(text)["validation"]["loss"] for text in (plain, told)]
            assert abs(scores[0] - scores[1]) > 1e-4


@pytest.mark.parametrize("command", ["verify", "verify B", "merge"])
def test_it_is_refused_where_something_is_compared_or_made(
    made: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    words = {
        "verify": ["verify", made.run],
        "verify B": ["verify", made.run, made.merged],
        "merge": ["merge", made.run, "-o", str(tmp_path / "new")],
    }[command]
    refused(capsys, *words, "--base", made.other)
    assert not (tmp_path / "new").exists()
    if command == "merge":
        assert run([*words, "--base", made.other, "--force"]) == 0
        assert f"note: {made.other} {OTHER}" in capsys.readouterr().err


def test_a_whole_model_has_no_base(
    made: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "p.jsonl")
    for words in (
        ["predict", made.merged, made.rows, "-o", out, "--base", made.other],
        ["generate", made.merged, "--prompt", "cat", "--base", made.other],
        ["chat", made.merged, "--base", made.other],
        ["eval", made.merged, "-r", made.recipe, f"model.path={made.other}"],
    ):
        refused(capsys, *words)
    assert not Path(out).exists()


def test_who_writes_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = FAMILIES["causal-lm"](tmp_path)
    train(recipe, "training.max_steps=1", f"output.dir={tmp_path / 'out'}")
    other = shutil.copytree(load_recipe(recipe).recipe.model.path, tmp_path / "other")
    tiny_llama(seed=5).save_pretrained(other)
    words = ["--base", str(other), "--max-new-tokens", "2", "--greedy"]
    capsys.readouterr()
    assert run(["generate", str(tmp_path / "out"), "-p", "cat", "--json", *words]) == 0
    out, err = capsys.readouterr()
    (note,) = json.loads(out)["notes"]
    assert f"{other} {OTHER}" in note
    assert f"note: {note}" in err
    monkeypatch.setattr(sys, "stdin", io.StringIO("cat\n"))
    assert run(["chat", str(tmp_path / "out"), *words]) == 0
    assert f"note: {note}" in capsys.readouterr().err
