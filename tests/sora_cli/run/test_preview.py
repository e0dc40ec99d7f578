"""The preview: columns, rows as the model gets them, what carries the loss, time and origins."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from sora_cli.app import run
from sora_cli.recipe.recipe import ModelBlock, TrainingBlock
from sora_cli.run.encoded_rows import length_of, row_lines
from sora_cli.run.step_time import measure_step
from sora_cli.tasks.encoded import Encoded
from sora_cli.tasks.language import IGNORED
from tests.helpers_chat import write_chat_recipe
from tests.helpers_errors import refused
from tests.helpers_models import tiny_bert
from tests.helpers_runs import pair_rows, tiny_tokenizer, train, write_recipe, write_rows

TOKENIZER = tiny_tokenizer()
CAT, DOG, RED = (TOKENIZER.convert_tokens_to_ids(word) for word in ("cat", "dog", "red"))


def _lines(names: list[str] | None = None, **row: Any) -> list[str]:
    task: Any = SimpleNamespace(
        label_names=names, label_column="labels", data=SimpleNamespace(max_length=3),
        options=SimpleNamespace(COLUMNS={"query": (), "positive": (), "negative": (), "score": ()}),
    )  # fmt: skip
    encoded = Encoded(Dataset.from_list([row]), np.array([3]), truncated=1)
    shown = list(row_lines(task, TOKENIZER, encoded, 0))
    return [length_of(task, encoded, 0), *shown]


def test_what_carries_the_loss_in_each_kind_of_row() -> None:
    ids = [CAT, DOG, RED]
    assert _lines(["a", "b"], input_ids=ids, labels=1) == [
        "3 tokens, cut at data.max_length", "tokens   cat dog red", "label    'b'",
    ]  # fmt: skip
    assert _lines(input_ids=ids, labels=1.5)[-1] == "label    1.5"
    assert _lines(input_ids=ids, labels=[IGNORED, IGNORED, RED]) == [
        "3 tokens, 1 carry the loss, cut at data.max_length", "read     cat dog", "learned  red",
    ]  # fmt: skip
    tags = _lines(["O", "B-X"], input_ids=ids, labels=[IGNORED, 1, 0])
    assert tags[1] == "tokens   cat dog/B-X red/O"
    assert _lines(input_ids=ids, labels=[RED, CAT])[1:] == [
        "tokens   cat dog red", "learned  red cat",
    ]  # fmt: skip
    span = _lines(input_ids=ids, start_positions=1, end_positions=2)
    assert span[1:] == ["tokens   cat dog red", "answer   dog red"]
    pair = [[IGNORED, DOG, RED], [IGNORED, RED]]
    assert _lines(input_ids=[[CAT, DOG, RED], [CAT, RED]], labels=pair) == [
        "3 tokens, 2 + 1 carry the loss, cut at data.max_length", "read     cat",
        "chosen   dog red", "rejected red",
    ]  # fmt: skip
    assert _lines(input_ids=[[CAT], [DOG]], labels=1)[1:] == ["choice   cat", "right    dog"]
    assert _lines(input_ids=[[CAT], [DOG], [RED], [CAT]], keys=[1, 2, 3, 4])[1:] == [
        "query    cat", "positive dog", "negative red", "negative cat",
    ]  # fmt: skip
    assert _lines(pixel_values={"bytes": b""}, labels=1, text="a") == [
        "", "pixel_values: an image", "labels: 1", "text: 'a'",
    ]  # fmt: skip
    assert _lines(["a", "b"], image={"bytes": b""}, labels=1)[-1] == "labels: 'b'"


def test_long_rows_lose_their_middle_and_nothing_breaks_a_line() -> None:
    lines = _lines(input_ids=[CAT] * 200, labels=0)
    assert len(lines[1]) < 270
    assert " ... " in lines[1]
    assert all(line.isprintable() for line in lines)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = write_recipe(tmp_path, tiny_bert(num_labels=2))
    rows = [
        {"id": i, "when": f"2024-01-{1 + i % 28:02d}", **row} for i, row in enumerate(pair_rows(48))
    ]
    write_rows(tmp_path / "train.jsonl", rows)
    return path


def _sections(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, str]:
    capsys.readouterr()
    assert run(["train", *words, "--dry-run"]) == 0
    parts = capsys.readouterr().out.split("\n\n")
    return {part.partition("\n")[0]: part.partition("\n")[2] for part in parts}


def test_a_dry_run_shows_columns_rows_and_origins(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = _sections(capsys, str(recipe), "training.learning_rate=0.02")
    assert "reads       sentence1, sentence2" in shown["columns"]
    assert "learns      label" in shown["columns"]
    assert "not taken   id (an identifier), when (dates or times)" in shown["columns"]
    assert shown["first training rows"].count("[CLS]") == 2
    short = {line[2:22].strip(): line[22:] for line in shown["in short"].splitlines()}
    line = recipe.read_text().splitlines().index("  r_max: 4") + 1
    assert short["rank at the start"].split() == ["4", f"{recipe}:{line}"]
    assert short["learning rate"].split() == ["0.02", "command", "line"]
    assert short["steps"].split()[:2] == ["12", "training.epochs,"]
    assert short["time"].split()[0] == "about"
    assert short["memory"].split()[-1] == "predicted"
    refused(capsys, "train", recipe, "--preview", "3")


@pytest.mark.long
def test_as_many_rows_as_are_asked_for(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = _sections(capsys, str(recipe), "--preview", "5")
    assert more["first training rows"].count("[CLS]") == 5
    assert "first training rows" not in _sections(capsys, str(recipe), "--preview", "0")


@pytest.mark.long
def test_chats_show_their_template_and_what_is_learned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = _sections(capsys, str(write_chat_recipe(tmp_path, rows=6)))
    assert "template    the tokenizer's chat template" in shown["columns"]
    assert "read " in shown["first training rows"]
    assert "learned " in shown["first training rows"]
    assert "carry the loss" in shown["first training rows"]


@pytest.mark.long
def test_a_run_says_in_a_few_lines_what_it_takes(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(recipe, "training.max_steps=1")
    said = capsys.readouterr().err.splitlines()
    (columns,) = [line for line in said if line.startswith("sequence-classification: ")]
    assert columns.endswith("reads sentence1, sentence2, learns label; columns not taken: id, when")
    (first,) = [line for line in said if line.startswith("first row, ")]
    assert "[CLS]" in first
    assert len(first) < 130


class _Scaled(torch.nn.Module):
    """A model that counts its passes."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.passes = torch.nn.Parameter(torch.ones(1)), 0

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        self.passes += 1
        torch.rand(1)
        return {"loss": (self.weight * x).sum()}


def _looks_at_all(model: Any, batches: list[Any]) -> list[Any]:
    """Run the model on each of several micro-batches, as a loss over a whole step does."""
    for batch in batches if len(batches) > 1 else []:
        assert not model(**batch)["loss"].requires_grad
    return batches


def test_a_step_is_scaled_from_what_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 16 rows of 100 tokens on average two of the middle are measured, 200 tokens."""
    clock = iter([0.0, 40.0])
    lengths = np.array([*range(50, 150), 100])
    model = _Scaled().eval()
    task = SimpleNamespace(
        collator=lambda _: lambda rows: {"x": torch.ones(len(rows))},
        options=SimpleNamespace(LOSS_COMPARES="nothing"),
        before_step=_looks_at_all,
        batch_loss=lambda model, batch: (model(**batch)["loss"], None),
    )
    train_rows = SimpleNamespace(lengths=lengths, dataset=[None] * 101)
    ready: Any = SimpleNamespace(
        train=train_rows, task=task, base=SimpleNamespace(model=model, processor=None)
    )
    recipe: Any = SimpleNamespace(training=TrainingBlock(batch_size=16), model=ModelBlock(path="x"))
    monkeypatch.setattr("sora_cli.run.step_time.time.perf_counter", lambda: next(clock))
    before = torch.get_rng_state()
    found = measure_step(ready, recipe)
    assert model.passes == 1  # the first pass was very long
    assert (found.rows, found.tokens) == (2, 200)
    assert found.seconds == pytest.approx(40 * lengths.mean() * 16 / 200)
    assert model.weight.grad is None
    assert not model.training
    assert torch.equal(torch.get_rng_state(), before)
    clock = iter([0, 4, 0, 2])
    assert measure_step(ready, recipe).seconds == pytest.approx(2 * lengths.mean() * 16 / 200)
    clock = iter([0, 1, 0, 0.25, 0, 0.5, 0, 0.5])
    assert measure_step(ready, recipe).seconds == pytest.approx(0.25 * lengths.mean() * 16 / 200)
    assert model.passes == 1 + 2 + 4
    task.options.LOSS_COMPARES = "step"
    clock = iter([0, 40])
    assert measure_step(ready, recipe).seconds == pytest.approx(40 * lengths.mean() * 16 / 200)
    parted: Any = SimpleNamespace(
        training=TrainingBlock(batch_size=16, gradient_accumulation=2), model=recipe.model
    )
    clock, model.passes = iter([0, 40]), 0
    half = 20 * lengths.mean() * 16 / 200  # two micro-batches of these rows are timed
    assert measure_step(ready, parted).seconds == pytest.approx(half)
    assert model.passes == 4
