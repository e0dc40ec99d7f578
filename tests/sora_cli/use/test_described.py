"""The recipe that rows are read with goes wherever a result goes, into a merged model, too."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from sora_cli.adapter.shared import shared_model
from sora_cli.app import run
from sora_cli.use.described import recipe_for_rows
from sora_cli.use.speaker import Form, load_speaker
from tests.helpers_chat import write_chat_recipe
from tests.helpers_errors import refused
from tests.helpers_models import tiny_bert
from tests.helpers_runs import pair_rows, train, write_recipe, write_rows

LENGTH = 5
"""Tokens: most of the rows are cut at it, and their answers are others without the cut."""
PROMPT = "say {instruction}"


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A classifier's run, and what is made of it: none of them lies beside the run's report."""
    folder = tmp_path_factory.mktemp("classifier")
    data = {"max_length": LENGTH, "text_columns": ["{sentence2}: {sentence1}"]}
    train(write_recipe(folder, tiny_bert(num_labels=2), data=data))
    made = {name: folder / name for name in ("out", "merged", "pruned", "copied", "sent")}
    assert run(["merge", str(made["out"]), "-o", str(made["merged"]), "--no-verify"]) == 0
    pruned = ["prune", str(made["out"]), "--rank", "4", "-o", str(made["pruned"])]
    assert run(pruned) == 0
    shutil.copytree(made["out"] / "adapter", made["copied"])
    made["sent"].mkdir()
    for name, content in shared_model(made["merged"], base_id=None, license_=None).files.items():
        is_made = isinstance(content, bytes)
        (made["sent"] / name).write_bytes(content if is_made else content.read_bytes())
    return made


def answers(place: Path, folder: Path) -> list[tuple[str, float]]:
    """`sora predict` of rows with more columns than the model was trained on."""
    rows = [{"sentence1": r["sentence1"], "more": "cat", "sentence2": r["sentence2"]}
            for r in pair_rows(16, seed=1)]  # fmt: skip
    file, out = write_rows(folder / "rows.jsonl", rows), folder / "out.jsonl"
    assert run(["predict", str(place), file, "-o", str(out), "--force"]) == 0
    made = [json.loads(line) for line in out.read_text().splitlines()]
    return [(row["prediction"], row["probability"]) for row in made]


@pytest.mark.parametrize("name", ["merged", "pruned", "copied", "sent"])
def test_rows_are_read_as_in_the_run(places: dict[str, Path], name: str, tmp_path: Path) -> None:
    expected, found = answers(places["out"], tmp_path), answers(places[name], tmp_path)
    assert [label for label, _ in found] == [label for label, _ in expected]
    assert [p for _, p in found] == pytest.approx([p for _, p in expected], abs=1e-6)
    data = recipe_for_rows(places[name])[0].recipe.data
    assert (data.max_length, data.text_columns) == (LENGTH, ["{sentence2}: {sentence1}"])


def test_a_result_of_an_older_version_is_read_by_its_report(
    places: dict[str, Path], tmp_path: Path
) -> None:
    place = tmp_path / "out"
    shutil.copytree(places["out"], place)
    file = place / "adapter" / "sora.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "row_recipe": {}}))
    assert run(["merge", str(place), "-o", str(tmp_path / "merged"), "--no-verify"]) == 0
    for read in (place / "adapter", tmp_path / "merged"):
        assert recipe_for_rows(read)[0].recipe.data.max_length == LENGTH


def test_what_is_sent_names_no_place_of_this_machine(places: dict[str, Path]) -> None:
    for file in places["sent"].glob("*.json"):
        assert str(places["out"].parent) not in file.read_text(), file.name


def test_code_of_others_is_not_run_whatever_the_file_says(
    places: dict[str, Path], tmp_path: Path
) -> None:
    place = tmp_path / "merged"
    shutil.copytree(places["merged"], place)
    known = json.loads((place / "sora.json").read_text())
    known["row_recipe"]["model"] |= {"trust_remote_code": True, "path": "/elsewhere"}
    known["row_recipe"]["data"] |= {"files": {"train": "/etc/passwd"}}
    (place / "sora.json").write_text(json.dumps(known))
    recipe = recipe_for_rows(place)[0].recipe
    assert not recipe.model.trust_remote_code
    assert (recipe.model.path, recipe.data.files) == ("unknown", None)


def test_a_merged_model_is_neither_an_adapter_nor_a_result_of_a_run(
    places: dict[str, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    refused(capsys, "inspect", places["merged"])
    place = tmp_path / "run"
    shutil.copytree(places["out"], place)
    shutil.copytree(places["merged"], place / "model")
    recipe = str(places["out"].parent / "tiny.yaml")
    refused(capsys, "train", recipe, f"output.dir={place}", "--force", "--no-verify")
    assert (place / "model" / "model.safetensors").is_file()


def test_a_model_that_writes_keeps_its_prompt(tmp_path: Path) -> None:
    task: dict[str, Any] = {"prompt": PROMPT, "max_new_tokens": 3}
    train(write_chat_recipe(tmp_path, task=task), "training.max_steps=2")
    merge = ["merge", str(tmp_path / "out"), "-o", str(tmp_path / "merged"), "--no-verify"]
    assert run([*merge, "--untie"]) == 0
    for place in (tmp_path / "out" / "adapter", tmp_path / "merged"):
        speaker, _ = load_speaker(str(place), place)
        assert speaker.form == Form(own=PROMPT)
        options: Any = recipe_for_rows(place)[0].recipe.task.options
        assert options.max_new_tokens == 3
