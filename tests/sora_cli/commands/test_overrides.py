"""Overrides of commands that do not train: each that is taken changes what comes out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sora_cli.app import run
from sora_cli.recipe.families import options_class, task_names
from sora_cli.recipe.reading import EVAL, PREDICT
from sora_cli.recipe.recipe import Recipe
from sora_cli.recipe.task_options import TaskOptions
from sora_cli.train import trainer
from tests.helpers_errors import refused
from tests.helpers_families import FAMILIES, whole_model
from tests.helpers_models import tiny_bert
from tests.helpers_runs import pair_rows, train, write_recipe, write_rows

SCORED: dict[str, list[str]] = {
    "data.path": ["data.path=./nowhere"],
    "data.files": ["data.files.validation={folder}/train.jsonl"],
    "data.name": ["data.path={folder}/set", "data.name=x"],
    "data.train": ["data.train=nothing"],
    "data.validation": ["data.validation=[train]"],
    "data.text_columns": ["data.text_columns=[sentence2,sentence1]"],
    "data.label_column": ["data.label_column=sentence1"],
    "data.columns": ["data.columns.part=sentence1"],
    "data.label_names": ["data.label_names=[a,b]"],
    "data.max_length": ["data.max_length=4"],
    "data.max_validation_rows": ["data.max_validation_rows=3"],
    "data.selection": ["data.selection=half-validation"],
    "data.selection_seed": ["data.selection=half-validation", "data.selection_seed=1"],
    "data.held_out_rows": ["data.held_out_rows=5"],
    "data.held_out_seed": ["data.validation=[new]", "data.held_out_rows=9", "data.held_out_seed=1"],
    "data.repeats": [
        "data.files.validation=[{folder}/validation.jsonl,{folder}/validation.jsonl]",
        "data.selection=half-validation",
        "data.repeats=separate",
    ],
    "data.rare_classes": [
        "data.files.train={folder}/rare.jsonl",
        "data.validation=[new]",
        "data.held_out_rows=8",
        "data.label_names=['0','1']",
        "data.rare_classes=train",
    ],
    "model.path": ["model.path={folder}/nowhere"],
    "model.dtype": ["model.dtype=bfloat16"],
    "model.attention": ["model.attention=eager"],
    "model.quantise": ["model.quantise=8bit"],
    "model.trust_remote_code": ["model.trust_remote_code=true"],
    "training.precision": ["training.precision=bf16"],
    "training.eval_batch_size": ["training.eval_batch_size=3"],
    "training.workers": ["training.workers=1"],
}
"""Key -> words, of which the last sets it: without that word something else comes out."""
NOT_HERE = {"data.revision", "data.corpus"}  # of data on the Hub; of queries (test_corpus.py)
WITH_CODE = {"model.trust_remote_code"}  # a model that comes with code of its own
ANSWERED: dict[str, list[str]] = {
    **{key: SCORED[key] for key in SCORED if key.startswith(("model.", "training."))},
    "data.text_columns": ["data.text_columns=[sentence2,sentence1]"],
    "data.label_column": ["data.text_columns=[label]", "data.label_column=x"],
    "data.columns": ["data.columns.part=sentence1"],
    "data.label_names": ["data.label_names=[a,b]"],
    "data.max_length": ["data.max_length=4"],
}
del ANSWERED["model.path"], ANSWERED["model.trust_remote_code"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe of a finished run in "out"."""
    folder = tmp_path_factory.mktemp("run")
    path = write_recipe(folder, tiny_bert(num_labels=2), training={"epochs": 1})
    train(path)
    (folder / "set").mkdir()
    for name in ("train", "validation"):
        (folder / "set" / f"{name}.jsonl").write_bytes((folder / f"{name}.jsonl").read_bytes())
    rare = [{**row, "label": int(i == 0)} for i, row in enumerate(pair_rows(9, seed=4))]
    write_rows(folder / "rare.jsonl", rare)
    write_rows(folder / "asked.jsonl", [row | {"label": "red"} for row in pair_rows(9, seed=3)])
    return path


def outcome(
    words: list[str],
    written: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> tuple[Any, ...]:
    """The exit code, scores, predictions, errors and notes; and how batches were prepared."""
    inner, given = trainer.training_arguments, list[int]()

    def arguments(*args: Any, **options: Any) -> Any:
        made = inner(*args, **options)
        given.extend([made.per_device_eval_batch_size, made.dataloader_num_workers])
        return made

    written.unlink(missing_ok=True)
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "training_arguments", arguments)
        code = run(words)
    out, err = capsys.readouterr()
    assert "would change nothing" not in err
    told = [line for line in err.splitlines() if line.startswith(("error: ", "note: "))]
    facts = json.loads(out) if out else {}
    facts.pop("seconds", None)
    return code, facts, written.read_text() if written.is_file() else "", told, given


def keys_of(blocks: tuple[str, ...]) -> set[str]:
    """All keys of these blocks of a recipe."""
    models: dict[str, Any] = {name: Recipe.model_fields[name].annotation for name in blocks}
    return {f"{name}.{key}" for name, model in models.items() for key in model.model_fields}


@pytest.mark.parametrize("key", SCORED)
def test_what_eval_takes_changes_its_result(
    recipe: Path, tmp_path: Path, key: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    folder, file = recipe.parent, tmp_path / "p.jsonl"
    start = ["eval", str(folder / "out"), "-r", str(recipe), "--json", "--predictions", str(file)]
    words = [word.replace("{folder}", str(folder)) for word in SCORED[key]]
    without, with_it = (
        outcome([*start, *given], file, monkeypatch, capsys) for given in (words[:-1], words)
    )
    assert without != with_it


@pytest.mark.parametrize("key", ANSWERED)
def test_what_predict_takes_changes_its_answers(
    recipe: Path, tmp_path: Path, key: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    folder, file = recipe.parent, tmp_path / "p.jsonl"
    start = ["predict", str(folder / "out"), str(folder / "asked.jsonl"), "-o", str(file), "--json",
             "--force", "--probabilities"]  # fmt: skip
    without, with_it = (
        outcome([*start, *given], file, monkeypatch, capsys)
        for given in (ANSWERED[key][:-1], ANSWERED[key])
    )
    assert without != with_it


def test_every_key_is_tried_or_refused() -> None:
    known = keys_of(("model", "data", "training"))
    assert {key for key in known if EVAL.reads(key)} == {*SCORED} | NOT_HERE
    assert {key for key in known if PREDICT.reads(key)} == {*ANSWERED} | WITH_CODE | {"data.corpus"}
    for reading in (EVAL, PREDICT):
        assert all(block in ("model", "data", "training", "task") or not reading.reads(block)
                   for block in Recipe.model_fields)  # fmt: skip


_SHORT = ("token-classification", "question-answering")
_KINDS = [kind for kind in task_names() if kind in FAMILIES]  # others have scores alone


@pytest.mark.parametrize(
    "kind", [k if k in _SHORT else pytest.param(k, marks=pytest.mark.long) for k in _KINDS]
)
def test_every_option_of_a_task_that_eval_takes_is_read(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, model = whole_model(tmp_path, kind)
    words = ["eval", str(model), "-r", str(recipe), "--predictions", str(tmp_path / "p.jsonl")]
    read, inner = set[str](), TaskOptions.__getattribute__

    def noting(self: TaskOptions, name: str) -> Any:
        read.add(name)
        return inner(self, name)

    with monkeypatch.context() as patch:
        patch.setattr(TaskOptions, "__getattribute__", noting)
        assert run(words) == 0
    options = options_class(kind).model_fields
    assert {name for name in options if EVAL.reads(f"task.{name}")} <= read


@pytest.mark.parametrize("word", ["training.epochs=9", "output.dir=x", "data.max_train_rows=3"])
def test_what_is_not_read_is_refused(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], word: str
) -> None:
    """Also where a size is chosen, of an adapter or of a model's difference."""
    out, new, rows = recipe.parent / "out", tmp_path / "new", recipe.parent / "asked.jsonl"
    measured = ["--max-drop", "50pt", "--recipe", str(recipe)]
    commands = [
        ["eval", str(out), "-r", str(recipe)],
        ["prune", str(out), "-o", str(new), *measured],
        ["extract", str(out), "--base", str(out), "-o", str(new), *measured],
        ["predict", str(out), str(rows), "-o", str(tmp_path / "p.jsonl")],
    ]
    for command in commands:
        refused(capsys, *command, word)
    assert not new.exists()


def test_scoring_needs_no_logger_and_no_batches_that_split(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run may have been logged, and split, where all of that was there."""
    file = recipe.with_name("logged.yaml")
    text = recipe.read_text(encoding="utf-8")
    file.write_text(text.replace("training:\n", "training:\n  loggers: [comet_ml]\n"), "utf-8")
    assert run(["eval", str(recipe.parent / "out"), "-r", str(file)]) == 0
    assert "comet" not in capsys.readouterr().err
