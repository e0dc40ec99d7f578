"""The recipe by which a model reads rows: its own length and template."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sora_cli.model.files import SORA_FILE
from sora_cli.recipe.recipe import Recipe
from sora_cli.verify.own_reading import own_recipe, reading_notes

RECIPE = Recipe.model_validate({
    "model": {"path": "base"},
    "task": {"name": "causal-lm", "prompt": "Q: {text}", "max_new_tokens": 8, "learn": "last"},
    "data": {"path": "rows", "max_length": 32},
    "method": {"name": "lora"},
})  # fmt: skip


@pytest.mark.parametrize(
    ("words", "prompt", "length"),
    [
        ([], "{text}?", 16),
        (["data.max_length=9"], "{text}?", 32),
        (["task.prompt=x"], "Q: {text}", 16),
        (["task={name: causal-lm}"], "Q: {text}", 16),
    ],
)
def test_what_the_user_names_holds_for_both(
    tmp_path: Path, words: list[str], prompt: str, length: int
) -> None:
    task = {"name": "causal-lm", "prompt": "{text}?", "learn": "all"}
    recorded = {"row_recipe": {"task": task, "data": {"max_length": 16}}}
    (tmp_path / SORA_FILE).write_text(json.dumps(recorded))
    own = own_recipe(tmp_path, RECIPE, words)
    options = own.task.options.model_dump()
    assert (options["prompt"], own.data.max_length) == (prompt, length)
    assert options["learn"] == "last"  # the recipe says what is scored
    keys = {key for key, other in (("task.prompt", prompt != "Q: {text}"),
                                   ("data.max_length", length != 32)) if other}  # fmt: skip
    assert {
        note.split(": ")[0].split()[-1] for note in reading_notes({"A": RECIPE, "B": own})
    } == keys


def test_a_model_of_another_family_or_without_a_record_is_read_by_the_recipe(
    tmp_path: Path,
) -> None:
    assert own_recipe(tmp_path, RECIPE, []) is RECIPE
    recorded = {"row_recipe": {"task": {"name": "seq2seq"}, "data": {"max_length": 16}}}
    (tmp_path / SORA_FILE).write_text(json.dumps(recorded))
    assert own_recipe(tmp_path, RECIPE, []) is RECIPE
