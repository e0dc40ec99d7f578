"""`sora train --dry-run`: all a person wants to know, on stdout, and nothing on the disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sora_cli.app import run
from sora_cli.recipe.load import load_recipe
from tests.golden import told
from tests.helpers_chat import write_chat_recipe
from tests.helpers_errors import refused
from tests.helpers_models import tiny_bert, tiny_deberta
from tests.helpers_runs import Trained, pair_rows, write_recipe, write_rows


def _dry_run(capsys: pytest.CaptureFixture[str], recipe: Path, *words: str) -> str:
    capsys.readouterr()
    assert run(["train", str(recipe), "--dry-run", *words]) == 0
    return capsys.readouterr().out


def _section(out: str, title: str) -> str:
    """The lines below a heading."""
    found = [part for part in out.split("\n\n") if part.partition("\n")[0] == title]
    assert len(found) == 1
    return found[0].partition("\n")[2]


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return write_recipe(tmp_path, tiny_bert(num_labels=2))


def test_every_value_with_its_origin(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["training.epochs=1", "method.alpha=4"]
    lines = _section(_dry_run(capsys, recipe, *words), "recipe").splitlines()
    loaded = load_recipe(recipe, words)
    text = [" ".join(line.split()) for line in lines]
    starts = {line.partition(" ")[0]: i for i, line in enumerate(text)}
    for key, _, origin in loaded.values():
        i = starts[key]
        long = not text[i].endswith(str(origin))  # a long value: its origin is below
        assert text[i + long].endswith(str(origin)), key
    assert any("method.alpha" in x and x.endswith("command line") for x in lines)
    assert any("method.r_max" in x and f"{recipe.name}:" in x for x in lines)
    assert any("training.weight_decay" in x and x.endswith("default") for x in lines)


def test_classes_and_remarks_on_the_data(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a run says, too: labels 1 and 2 made three classes without a word."""
    rows = [row | {"label": row["label"] + 1} for row in pair_rows(48)]
    first = [1 + i % 2 for i in range(48)]
    rows = [row | {"label": label} for row, label in zip(rows, first, strict=True)]
    write_rows(tmp_path / "train.jsonl", rows)
    lines = [f"{row['sentence1']},{row['sentence2']},{row['label']},-" for row in rows[:24]]
    twice = tmp_path / "twice.csv"
    twice.write_text("\n".join(["sentence1,sentence2,label,sentence1", *lines]))
    out = _dry_run(capsys, recipe, f"data.files.validation={twice}")
    told = " ".join(_section(out, "data").split())
    assert "classes, in train / validation: '0' 0 / 0, '1' 24 / 12, '2' 24 / 12" in told
    assert "classes without rows in train: '0' (1 of 3): nothing can be learned about them" in told
    assert "classes without rows in validation: '0' (1 of 3)" in told
    assert "all 24 rows of validation are training rows, too: its scores say nothing" in told
    assert "twice.csv:1 has 2 columns called 'sentence1' (1, 4)" in told


def test_chats_cut_within_their_answer_and_empty_answers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_chat_recipe(tmp_path, rows=6)
    chats = [
        [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": answer}]
        for answer in ("a dog", "", "red")
    ]
    write_rows(tmp_path / "train.jsonl", [{"messages": chat} for chat in chats])
    write_rows(tmp_path / "valid.jsonl", [{"messages": chats[0]}])
    told = " ".join(_section(_dry_run(capsys, recipe, "data.max_length=3"), "data").split())
    assert "2 of 3 rows of train lose the end of their answers at data.max_length=3" in told
    assert "1 of 3 rows of train have an empty answer: only the end token is learned" in told
    assert "1 of 1 rows of validation lose the end of their answers" in told
    write_rows(tmp_path / "valid.jsonl", [{"messages": chats[1]}])
    refused(capsys, "train", str(recipe), "--dry-run")


def test_what_is_adapted_and_what_is_not(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = _dry_run(capsys, recipe, "method.targets=[query, value]")
    told(_section(out, "adapted layers"))
    told(_section(out, "linear layers without adapter"))


def test_parameters(classifier: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    out = _dry_run(capsys, classifier.recipe, "--force")
    text, report = _section(out, "parameters"), classifier.report
    for n in (
        report.parameters.base,
        report.parameters.trained,
        report.parameters.adapter_start,
        report.parameters.head,
    ):
        assert f" {n:,}" in text
    told(text)


def test_a_frozen_head_is_named(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = _dry_run(capsys, recipe, "training.train_head=false")
    told(_section(out, "parameters"))
    told(_section(out, "linear layers without adapter"))


def test_rows_and_what_is_cut(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = _section(_dry_run(capsys, recipe, "data.max_length=10"), "data").splitlines()
    train_row, select_row, report_row = (line.split() for line in text[1:4])
    assert train_row[:3] == ["train", "48", "20"]
    assert "the longest has 20: data.max_length=20" in " ".join(" ".join(text).split())
    assert 0 < int(train_row[3]) < 48
    assert select_row[:2] == ["select", "24"]
    assert report_row[:3] == ["report", "validation", "24"]


def test_steps_and_phases(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["method.name=adalora", "method.init_r=4", "method.target_r=2", "training.epochs=5"]
    text = _section(_dry_run(capsys, recipe, *words), "steps")
    told(text)


def test_warns_of_a_threshold_that_can_not_prune(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = _section(_dry_run(capsys, recipe, "method.threshold=3e-4", "training.epochs=3"), "steps")
    told(text)
    suggested = text.split("method.threshold=")[1].split()[0]
    again = _dry_run(capsys, recipe, f"method.threshold={suggested}", "training.epochs=3")
    assert "WARNING" not in again


def test_memory_adds_up(
    recipe: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # the peak of this process is that of the tests before
    monkeypatch.setattr("sora_cli.run.memory.peak_memory", lambda: 0)
    text = _section(_dry_run(capsys, recipe), "memory")
    assert "predicted peak resident memory" in text
    assert "activations of 8 rows x" in text
    assert "extrapolated" not in text
    units = {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9}
    words = [line.split() for line in text.splitlines()]
    sizes = [float(line[-2]) * units[line[-1]] for line in words if line[-1] in units]
    assert len(sizes) == 8
    assert sum(sizes[1:]) == pytest.approx(sizes[0], rel=0.06)


def test_says_when_memory_is_extrapolated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError("this model looks at its values")

    monkeypatch.setattr("sora_cli.run.memory_trace.Passes._without_data", fails)
    recipe = write_recipe(tmp_path, tiny_deberta(num_labels=2))
    assert "extrapolated" in _section(_dry_run(capsys, recipe), "memory")


def test_errors_are_those_of_the_run(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["method.name=adalora", "method.t_init=100"]
    refused(capsys, "train", str(recipe), "--dry-run", *words)


def test_writes_nothing(
    recipe: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(recipe.parent)
    before = _files(recipe.parent)
    _dry_run(capsys, recipe)
    _dry_run(capsys, recipe, "output.dir=null", "training.loggers=[tensorboard]")
    assert _files(recipe.parent) == before


def test_says_when_a_finished_run_is_in_the_way(
    recipe: Path, classifier: Trained, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "WARNING" not in _section(_dry_run(capsys, recipe), "output")
    text = _section(_dry_run(capsys, classifier.recipe), "output")
    assert "holds a finished run" in " ".join(text.split())


def _files(folder: Path) -> dict[str, Any]:
    return {str(p): p.stat().st_mtime_ns for p in sorted(folder.rglob("*"))}
