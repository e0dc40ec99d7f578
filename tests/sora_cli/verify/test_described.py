"""`sora verify` compares more than outputs: the names of classes, and what else decides answers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from sora_cli.adapter.digest import differing_facts, has_changed, result_digests
from sora_cli.app import run
from sora_cli.report import read_report
from tests.helpers_runs import Trained
from tests.helpers_verify import facts_of
from tests.present import present


def edited(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values), encoding="utf-8")


@pytest.mark.parametrize("older", [False, True])
def test_a_run_whose_classes_have_other_names(
    classifier: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str], older: bool
) -> None:
    """The report tells them, also one of an older version, without digests."""
    changed = shutil.copytree(classifier.run, tmp_path / "run")
    assert facts_of(capsys, changed)[0] == 0
    if older:
        edited(changed / "report.json", digests={})
    edited(changed / "adapter" / "sora.json", labels=["1", "0"])
    code, facts = facts_of(capsys, changed)
    said = f"{changed}/adapter/sora.json has the labels 1, 0, and {changed}/report.json 0, 1"
    assert (code, facts["reason"]) == (1, said)
    rows, out = classifier.recipe.parent / "train.jsonl", tmp_path / "p.jsonl"
    for words in (["predict", str(rows), "-o", str(out)], ["eval", "-r", str(classifier.recipe)]):
        run([words[0], str(changed), *words[1:]])
        assert f"note: {said}" in capsys.readouterr().err


def test_two_that_call_their_classes_otherwise(
    classifier: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An adapter beside its merged model, two adapters, two models."""
    assert facts_of(capsys, classifier.run, classifier.merged)[0] == 0
    merged = shutil.copytree(classifier.merged, tmp_path / "merged")
    edited(merged / "config.json", id2label={"0": "1", "1": "0"})
    adapter = shutil.copytree(classifier.run / "adapter", tmp_path / "a")
    edited(adapter / "sora.json", labels=["1", "0"])
    for one, other in (
        (classifier.run, merged),
        (classifier.run, adapter),
        (classifier.merged, merged),
    ):
        code, facts = facts_of(capsys, one, other)
        assert code == 1
        assert f"{one} has the labels 0, 1, and {other} 1, 0" in facts["reason"]
    said = f"{merged}/config.json has the labels 1, 0, and {merged}/sora.json 0, 1"
    assert facts_of(capsys, adapter, merged)[1]["reason"] == said
    edited(merged / "sora.json", labels=["1", "0"])
    assert facts_of(capsys, adapter, merged)[0] == 0
    edited(merged / "config.json", id2label={"0": "LABEL_0", "1": "LABEL_1"})
    edited(merged / "sora.json", labels=["0", "1"])
    assert facts_of(capsys, classifier.run, merged)[0] == 0  # names that transformers made up


def lower(folder: Path) -> None:
    edited(folder / "tokenizer_config.json", do_lower_case=True)


def other_weights(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    save_file({name: -tensor for name, tensor in load_file(file).items()}, file)


CHANGES: dict[str, Callable[[Path], None]] = {
    "the max_length 64, and": lambda folder: edited(folder / "sora.json", max_length=64),
    "the task 'sequence-regression', and": lambda folder: edited(
        folder / "sora.json", task="sequence-regression"
    ),
    "sora.json has changed since the run": lambda folder: edited(
        folder / "sora.json", input_columns=["sentence2", "sentence1"]
    ),
    "tokenizer_config.json has changed since the run": lower,
    "adapter has changed since the run: its report describes another adapter": other_weights,
}


@pytest.mark.parametrize("said", CHANGES)
def test_what_else_decides_answers(
    classifier: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str], said: str
) -> None:
    changed = shutil.copytree(classifier.run, tmp_path / "run")
    CHANGES[said](changed / "adapter")
    code, facts = facts_of(capsys, changed)
    assert code == 1
    assert said in facts["reason"]
    report = present(read_report(changed))
    assert has_changed(changed, report)


def test_what_decides_nothing_may_change(
    classifier: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = shutil.copytree(classifier.run, tmp_path / "run")
    edited(changed / "adapter" / "sora.json", lineage=[{"command": "x"}], sora_version="0")
    (changed / "adapter" / "tokenizer_config.json").unlink()  # the base model has its own
    assert facts_of(capsys, changed)[0] == 0
    (changed / "adapter" / "sora.json").unlink()
    assert facts_of(capsys, changed, "--base", classifier.recipe.parent / "base")[0] == 1


def test_digests_are_of_the_result_and_of_files_beside_it(classifier: Trained) -> None:
    report = present(read_report(classifier.run))
    assert report.digests == result_digests(classifier.run / "adapter")
    names = {"adapter", "adapter/sora.json", "adapter/tokenizer.json"}
    assert names <= report.digests.keys()


def test_long_lists_are_shown_where_they_differ() -> None:
    one = [f"c{number}" for number in range(30)]
    (said,) = differing_facts({"labels": one}, {"labels": [*one[:25], "x", *one[26:]]}, ("A", "B"))
    assert said.startswith("A has the labels ..., c25, c26")
    assert ", and B ..., x, c26" in said
