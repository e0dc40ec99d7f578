"""A promise that cannot be computed is refused before the first step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sora_cli.app import run
from tests.helpers_errors import error_of
from tests.helpers_families import write_family_recipe
from tests.helpers_models import tiny_bert
from tests.helpers_runs import save_base, write_rows


def three_queries_each(documents: int) -> list[dict[str, Any]]:
    """Pairs of a query and its document; each document has three queries."""
    return [
        {"query": own_words(3 * number + n), "positive": own_words(1000 + number)}
        for number in range(documents)
        for n in range(3)
    ]


def own_words(number: int) -> str:
    """A text of words that the model's tokenizer knows, of this number alone."""
    return f"{number:012b}".replace("0", "the ").replace("1", "a ")


def test_few_inputs_are_refused_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = three_queries_each(100)
    recipe = write_family_recipe(
        tmp_path,
        model={"path": str(save_base(tiny_bert(), tmp_path / "base"))},
        task={"name": "embedding"},
        data={
            "files": {
                "train": write_rows(tmp_path / "train.jsonl", rows[:240]),
                "validation": write_rows(tmp_path / "validation.jsonl", rows[240:]),
            },
            "max_length": 32,
        },
        training={"epochs": 4, "batch_size": 8},
    )
    out = tmp_path / "out"
    lines = error_of(capsys, "auto", recipe, "--max-drop", "2pt", f"output.dir={out}")
    assert "needs 50 test rows with different inputs" in lines[0]
    assert "--max-differ 1% --unlabelled QUERIES data.corpus=DOCUMENTS" in lines[-1]
    assert not list(out.glob("sizes/*"))


def test_init_counts_inputs_and_names_what_can_be_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "pairs.jsonl", three_queries_each(200))
    base = save_base(tiny_bert(), tmp_path / "base")
    assert run(["init", "pairs.jsonl", "--model", str(base)]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "sora auto is not proposed: the promise cannot be computed" in said
    assert "needs 50 test rows with different inputs, and there are 24" in said
    assert "--max-differ 1% --unlabelled QUERIES data.corpus=DOCUMENTS" in said
    assert "sora auto pairs" not in said
