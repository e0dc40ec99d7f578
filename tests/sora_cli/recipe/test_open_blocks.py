"""The task's own options in recipes: checked by the family that is named, with file and line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from methods.registry import config_class, method_names
from sora_cli.core.errors import SoraError
from sora_cli.recipe.changes import changes
from sora_cli.recipe.families import options_class, task_names
from sora_cli.recipe.load import LoadedRecipe, load_recipe
from sora_cli.recipe.open_blocks import OPEN_BLOCKS, options_of
from sora_cli.run.preflight import check_recipe

BASE = """\
model:
  path: some/model
task:
  name: causal-lm
  max_new_tokens: 8
data:
  path: some/data
method:
  name: sora
"""


@pytest.fixture(autouse=True)
def _in_empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def _load(text: str, *overrides: str) -> LoadedRecipe:
    Path("r.yaml").write_text(text, encoding="utf-8")
    loaded = load_recipe("r.yaml", overrides)
    check_recipe(loaded.recipe, model=False)
    return loaded


def _fails(text: str, *overrides: str) -> list[str]:
    with pytest.raises(SoraError) as caught:
        _load(text, *overrides)
    return caught.value.lines()


def _with(*lines: str) -> str:
    """More of the task block, from line 6 on."""
    return BASE.replace("data:\n", "".join(f"  {line}\n" for line in lines) + "data:\n")


def test_names_and_classes_are_those_of_methods_and_families() -> None:
    assert OPEN_BLOCKS["method"].names() == method_names()
    assert OPEN_BLOCKS["task"].names() == task_names()
    values = {"method": {"name": "lora"}, "task": {"name": "seq2seq"}}
    assert options_of("method", values) is config_class("lora")
    assert options_of("task", values) is options_class("seq2seq")
    for given in ({}, {"task": "seq2seq"}, {"task": {}}, {"task": {"name": ["x"]}}):
        assert options_of("task", given) is None


def test_a_familys_own_options_are_typed_and_placed() -> None:
    loaded = _load(_with("packing: true"), "task.metrics=rougeL")
    options = loaded.recipe.task.options
    assert isinstance(options, options_class("causal-lm"))
    resolved = loaded.resolved()["task"]
    assert resolved["name"] == "causal-lm"
    assert (resolved["packing"], resolved["max_new_tokens"]) == (True, 8)
    assert resolved["metrics"] == ["rougeL"]
    assert resolved["prompt"] == "auto"  # a default
    assert str(loaded.origins["task", "packing"]) == "r.yaml:6"


@pytest.mark.parametrize(
    ("line", "what", "hint"),
    [
        ("packin: true", "unknown key 'packin' in task (causal-lm)", "did you mean 'packing'?"),
        ("stride: 9", "unknown key 'stride' in task (causal-lm)", "there are: metrics, best_"),
        ("max_length: 9", "unknown key 'max_length' in task (", "did you mean 'data.max_length'?"),
        ("packing: maybe", "task.packing must be true or false, not 'maybe'", "several rows"),
        ("generation_batch_size: 0", "task.generation_batch_size must be a whole number at least 1",
         "rows per batch"),
        ("generation_batch_size: true", "must be a number, not true", ""),
        ("system: 5", "task.system must be text or null, not 5", "quotes"),
        ("metrics: []", "task.metrics must be text or a list of at least 1 value, not []", "loss"),
        ("metrics: 3", "task.metrics must be text or a list of at least 1 value, not 3", "quotes"),
        ("greater_is_better: no!", "task.greater_is_better must be true or false", "larger"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_an_option(line: str, what: str, hint: str) -> None:
    told, where, *then = _fails(_with(line))
    assert what in told
    assert "more problem" not in told
    assert where == "r.yaml:6"
    assert hint in " ".join(then)


def test_an_override_is_named_instead() -> None:
    assert _fails(BASE, "task.packin=true")[1] == "command line: task.packin=true"
    assert _fails(BASE, "task.packing=maybe")[1] == "command line: task.packing=maybe"


def test_a_familys_option_in_another_block() -> None:
    assert _fails(BASE, "training.packing=true")[2] == "did you mean 'task.packing'?"


@pytest.mark.parametrize("block", ["task", "method"])
@pytest.mark.parametrize(
    ("value", "says", "hint"),
    [
        ("{name: 3}", "{}.name must be text, not 3", "quotes"),
        ("{name: null}", "{}.name must be text, not null", ""),
        ("{packing: true}", "{}.name is missing", ""),
        ("lora", "{} must be a block of keys, not 'lora'", "write {}.name=lora"),
        ("[lora]", '{} must be a block of keys, not ["lora"]', ""),
        ("{name: loraa}", "no {} 'loraa'", ""),
    ],
)
def test_what_names_nothing(block: str, value: str, says: str, hint: str) -> None:
    kept = {"task": "task:\n  name: causal-lm\n  max_new_tokens: 8\n", "method": "method:\n  name: "
            "sora\n"}  # fmt: skip
    text = BASE.replace(kept[block], f"{block}: {value}\n")
    assert text != BASE
    told, where, *then = _fails(text)
    assert told == says.format(block)
    assert where.startswith("r.yaml:")
    assert hint.format(block) in " ".join(then)


def test_problems_of_all_three_places_are_counted() -> None:
    told, *_ = _fails(BASE, "task.packin=true", "method.r_mx=3", "training.epohs=2")
    assert told.startswith("unknown key 'epohs' in training")
    assert told.endswith("(and 2 more problems)")


# --- another family


def test_the_old_familys_options_are_dropped_with_a_note() -> None:
    text = _with("packing: true", "best_metric: loss", "metrics: [loss]")
    loaded = _load(text, "task.name=seq2seq")
    note = "task.name=seq2seq (command line): dropped causal-lm's packing"
    assert loaded.notes == (note,)
    resolved = loaded.resolved()["task"]
    assert resolved["max_new_tokens"] == 8  # both have it
    assert resolved["best_metric"] == "loss"
    assert ("task", "packing") not in loaded.origins
    assert _load(text, "task.name=causal-lm").notes == ()


def test_a_child_file_may_change_the_family() -> None:
    Path("base.yaml").write_text(_with("packing: true"), encoding="utf-8")
    child = "extends: base.yaml\ntask:\n  name: question-answering\n  stride: 9\n"
    loaded = _load(child)
    note = "task.name=question-answering (r.yaml:3): dropped causal-lm's max_new_tokens, packing"
    assert loaded.notes == (note,)
    assert loaded.resolved()["task"]["stride"] == 9


def test_options_and_typos_beside_the_new_name_are_not_dropped() -> None:
    told, where, *_ = _fails(BASE, "task.name=seq2seq", "task.packing=true")
    assert told == "unknown key 'packing' in task (seq2seq)"
    assert where == "command line: task.packing=true"
    assert "unknown key 'packin'" in _fails(_with("packin: true"), "task.name=seq2seq")[0]


# --- metrics and columns


@pytest.mark.parametrize(
    ("family", "metric", "hint"),
    [
        ("causal-lm", "acuracy", "did you mean 'token_accuracy'?"),
        ("causal-lm", "mcc", ""),  # of the Hub: such families run none of its code
        ("seq2seq", "rogueL", "did you mean 'rougeL'?"),
        ("question-answering", "accuracy", ""),
        ("image-classification", "perplexity", ""),
    ],
)
def test_metrics_of_another_family(family: str, metric: str, hint: str) -> None:
    text = BASE.replace("  max_new_tokens: 8\n", f"  metrics: [{metric}]\n")
    told, where, *then = _fails(text.replace("causal-lm", family))
    assert told == f"no metric '{metric}' for this task"
    assert where == f"r.yaml:5; built-in: {', '.join(options_class(family).METRICS)}"
    assert hint in " ".join(then)


@pytest.mark.parametrize("family", task_names())
def test_a_part_that_rows_of_a_family_do_not_have(family: str) -> None:
    text = BASE.replace("  max_new_tokens: 8\n", "").replace("causal-lm", family)
    text = text.replace("some/data\n", "some/data\n  columns:\n    {}: mine\n")
    parts = options_class(family).COLUMNS
    for part in parts:
        assert _load(text.format(part)).recipe.data.columns == {part: "mine"}
    told, where, *_ = _fails(text.format("zzz"))
    assert told.startswith(f"data.columns: rows of task {family} have no part 'zzz'; ")
    assert where == "r.yaml:8"
    assert told.endswith(f"there are: {', '.join(parts)}" if parts else "see data.text_columns")


@pytest.mark.parametrize("value", ["{instruction: 5}", "[ask]", "ask"])
def test_columns_must_be_names_of_columns(value: str) -> None:
    told, where, _ = _fails(BASE, f"data.columns={value}")
    assert told.startswith("data.columns must be a mapping of keys to texts, not ")
    assert where == f"command line: data.columns={value}"


# --- recipes and records from before families had options of their own


def test_metrics_null_are_the_familys_own() -> None:
    text = BASE.replace("  max_new_tokens: 8\n", "  metrics: null\n")
    for family in task_names():
        plain = _load(text.replace("  metrics: null\n", "").replace("causal-lm", family))
        assert _load(text.replace("causal-lm", family)).resolved() == plain.resolved()


def test_a_run_of_an_earlier_version_is_still_the_same_run() -> None:
    text = BASE.replace("  max_new_tokens: 8\n", "").replace("causal-lm", "sequence-regression")
    now = _load(text).resolved()
    before: dict[str, Any] = {**now, "data": {**now["data"]}, "task": {**now["task"]}}
    del before["data"]["columns"]
    before["task"]["metrics"] = None
    assert changes(before, now) == []
    before["task"]["metrics"] = ["pearson"]
    assert [key for key, *_ in changes(before, now)] == ["task.metrics"]
