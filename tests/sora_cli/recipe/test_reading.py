"""Overrides for commands that do not train: read, harmless, needed, or refused."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from sora_cli.core.errors import SoraError
from sora_cli.recipe.load import load_recipe
from sora_cli.recipe.reading import (
    CERTIFICATE,
    EVAL,
    MAX_DROP,
    PREDICT,
    Reading,
    load_read,
    named_base,
    words_read,
)

RECIPE = """\
model: {path: base}
task: {name: sequence-classification, metrics: [accuracy, f1]}
data: {files: {train: a.csv, validation: b.csv}}
method: {name: lora, r: 4}
training: {epochs: 2}
output: {dir: out}
"""
REFUSED = {
    EVAL: ["training.epochs=9", "method.r=2", "method.name=full", "output.dir=x", "start=null",
           "start.adapter=a", "auto.max_drop=1", "data.max_train_rows=3", "data.selection_rows=3",
           "task.best_metric=f1", "model.revision=main", "training={epochs: 9}", "resources.cpus=1",
           "paper={source: a, model: b, metric: c, values: {}}"],
    MAX_DROP: ["training.epochs=9", "model.path=x", "data.max_train_rows=3", "method.r=2"],
    PREDICT: ["training.epochs=9", "model.path=x", "data.files.train=c.csv", "task.metrics=[f1]"],
    CERTIFICATE: ["auto.max_drop=1", "task.metrics=[f1]", "data.max_length=9", "model.dtype=auto",
                  "training.precision=bf16", "data.validation=[x]"],
}  # fmt: skip
READ = {
    EVAL: ["data.files.validation=c.csv", "model.path=x", "data={max_length: 4}"],
    MAX_DROP: ["task.best_metric=f1", "data.selection_rows=3", "data.selection=train-rows"],
    PREDICT: ["data.max_length=9", "data.text_columns=[a]", "training.eval_batch_size=2"],
    CERTIFICATE: ["data.files.train=c.csv", "data.path=d", "model.path=x",
                  "model.trust_remote_code=true"],
}  # fmt: skip


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    file = tmp_path / "r.yaml"
    file.write_text(RECIPE, encoding="utf-8")
    return file


def cases(words: dict[Reading, list[str]]) -> list[tuple[Reading, str]]:
    return [(reading, word) for reading, own in words.items() for word in own]


@pytest.mark.parametrize(
    ("reading", "word"), cases(REFUSED), ids=lambda case: getattr(case, "command", case)
)
def test_a_key_that_is_not_read(recipe: Path, reading: Reading, word: str) -> None:
    """The error names it, and what may be given."""
    if word == "start=null":
        recipe.write_text(f"{RECIPE}start: {{adapter: a}}\n", encoding="utf-8")
    with pytest.raises(SoraError) as caught:
        load_read(partial(load_recipe, recipe), ["data.files.validation=b.csv", word], reading)
    lines = caught.value.lines()
    assert len(lines) == 3
    key = word.partition("=")[0] if "={" not in word else word.partition("=")[0] + "."
    assert lines[0].removeprefix("error: ").startswith(key)
    assert "would change nothing" in lines[0]
    assert lines[1].strip() == f"command line: {word}"
    assert reading.keys[0] in lines[2]


@pytest.mark.parametrize(
    ("reading", "word"), cases(READ), ids=lambda case: getattr(case, "command", case)
)
def test_a_key_that_is_read(recipe: Path, reading: Reading, word: str) -> None:
    load = partial(load_recipe, recipe)
    assert load_read(load, [word], reading).resolved() == load([word]).resolved()
    assert words_read(load, [word], reading) == [word]


def test_the_value_that_a_key_has_anyway(recipe: Path) -> None:
    words = ["training.epochs=2", "method.name=lora", "output.dir=out", "training.seed=0"]
    load_read(partial(load_recipe, recipe), words, EVAL)


def test_a_recipe_that_is_none_without_the_override(recipe: Path) -> None:
    recipe.write_text(RECIPE.replace("method: {name: lora, r: 4}\n", ""), encoding="utf-8")
    load, words = partial(load_recipe, recipe), ["method.name=lora", "data.max_length=4"]
    assert load_read(load, words, EVAL).recipe.method.name == "lora"
    assert words_read(load, words, EVAL) == words


def test_the_base_that_an_override_names(recipe: Path) -> None:
    assert named_base(load_recipe(recipe)) is None
    assert named_base(load_recipe(recipe, ["model.path=x"])) == "x"
    assert named_base(load_recipe(recipe, ["model={path: y}"])) == "y"
