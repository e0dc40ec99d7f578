"""The answers that `sora predict` writes are those that `sora eval` scores, for every family."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sora_cli.app import run
from sora_cli.model.base import load_base
from sora_cli.recipe.load import load_recipe
from sora_cli.run.prepare import load_task
from tests.helpers_families import FAMILIES

WITHOUT_LABELS = {
    "causal-lm": {"output"},
    "multiple-choice": {"label"},
    "seq2seq": {"output"},
    "question-answering": {"answers"},
    "token-classification": {"tags"},
    "image-classification": {"label"},
    "image-text": set(),
}
"""By family, the columns that rows to be answered do not have."""
TELLS = {"task.name", "data.max_length", "data.columns", "task.stride", "task.max_answer_length",
         "task.max_new_tokens", "data.label_names"}  # fmt: skip
"""What a model's own files do not tell."""


def whole_model(folder: Path, kind: str) -> tuple[Path, Path, Any]:
    """A recipe of the family, its untrained model with its head, and its validation rows."""
    recipe = FAMILIES[kind](folder)
    loaded = load_recipe(recipe)
    task, rows = load_task(loaded.recipe)
    base = load_base(loaded.recipe.model, task)
    base.model.save_pretrained(folder / "whole")
    base.processor.save_pretrained(folder / "whole")
    return recipe, folder / "whole", next(iter(rows.report.values()))


def told(recipe: Path) -> list[str]:
    """The recipe's values that a model's files do not hold, as overrides."""
    values = {key: value for key, value, origin in load_recipe(recipe).values()}
    words = [f"{key}={json.dumps(value)}" for key, value in values.items() if key in TELLS]
    columns = {k.rpartition(".")[2]: v for k, v in values.items() if k.startswith("data.columns.")}
    return [*(w for w in words if w.partition("=")[2] not in ("null", "{}")),
            *([f"data.columns={json.dumps(columns)}"] if columns else [])]  # fmt: skip


_SHORT = ("token-classification", "seq2seq")
_KINDS = [k if k in _SHORT else pytest.param(k, marks=pytest.mark.long) for k in WITHOUT_LABELS]


@pytest.mark.parametrize("kind", _KINDS)
def test_the_same_as_eval(kind: str, tmp_path: Path) -> None:
    recipe, model, rows = whole_model(tmp_path, kind)
    scored, answered = tmp_path / "scored.jsonl", tmp_path / "answered.jsonl"
    assert run(["eval", str(model), "-r", str(recipe), "--predictions", str(scored)]) == 0
    asked = rows.remove_columns(WITHOUT_LABELS[kind] & set(rows.column_names))
    binary = any("image" in name for name in rows.column_names)
    file = tmp_path / ("asked.parquet" if binary else "asked.jsonl")
    asked.to_parquet(str(file)) if binary else asked.to_json(str(file))
    out = answered.with_suffix(".parquet") if binary else answered
    assert run(["predict", str(model), str(file), "-o", str(out), *told(recipe)]) == 0
    if binary:
        import pyarrow.parquet as pq

        given = pq.read_table(out).to_pylist()
    else:
        given = [json.loads(line) for line in out.read_text().splitlines()]
    wanted = [json.loads(line) for line in scored.read_text().splitlines()]
    assert len(given) == len(wanted) == len(rows)
    for row, record, own in zip(given, wanted, asked.with_format("arrow").to_list(), strict=True):
        assert {name: row[name] for name in own} == own
        check(kind, row, record)


def check(kind: str, row: dict[str, Any], record: dict[str, Any]) -> None:
    if kind == "image-text":
        assert row["similarity"] == pytest.approx(record["cosine"], abs=1e-5)
        return
    assert row["prediction"] == record["prediction"]
    if kind == "multiple-choice":
        assert row["choice"] == record["places"]["prediction"]
        assert row["prediction"] == row["choices"][row["choice"]]
        assert 1 / 3 <= row["probability"] < 1
    if kind == "question-answering":
        assert row["score"] == pytest.approx(record["score"], abs=1e-4)
        assert row["prediction"] == row["context"][row["start"] : row["end"]]
    if kind == "token-classification":
        assert len(row["prediction"]) == len(row["tokens"])


@pytest.mark.long
def test_a_chat_is_answered_after_its_last_question(tmp_path: Path) -> None:
    """With an answer of its own or without, under any names of the keys."""
    _, model, _ = whole_model(tmp_path, "causal-lm")
    asked = [{"from": "human", "value": "cat sees dog"}]
    answer = {"from": "gpt", "value": "bird"}
    lines = [{"conversations": asked}, {"conversations": [*asked, answer]}]
    plain = {"instruction": "cat sees dog"}
    made = []
    for name, rows in {"chats": lines, "plain": [plain, plain]}.items():
        file, out = tmp_path / f"{name}.jsonl", tmp_path / f"{name}-out.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        words = ["--task", "causal-lm", "task.max_new_tokens=5"]
        assert run(["predict", str(model), str(file), "-o", str(out), *words]) == 0
        made.append([json.loads(line) for line in out.read_text().splitlines()])
    chats, others = made
    assert [row["conversations"] for row in chats] == [row["conversations"] for row in lines]
    assert len({row["prediction"] for row in (*chats, *others)}) == 1


def test_a_text_is_gone_on_with(tmp_path: Path) -> None:
    import torch
    import transformers

    _, model, _ = whole_model(tmp_path, "causal-lm")
    (tmp_path / "texts.jsonl").write_text('{"text": "cat sees dog"}\n')
    out = tmp_path / "out.jsonl"
    words = ["task.max_new_tokens=4", "--task", "causal-lm"]
    assert run(["predict", str(model), str(tmp_path / "texts.jsonl"), "-o", str(out), *words]) == 0
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(model)
    ids = torch.tensor([tokenizer("cat sees dog")["input_ids"]])
    given = loaded.generate(ids, max_new_tokens=4, do_sample=False)[0, ids.shape[1] :]
    assert json.loads(out.read_text())["prediction"] == tokenizer.decode(
        given, skip_special_tokens=True
    ).strip()  # fmt: skip


@pytest.mark.long
def test_rows_that_are_to_be_answered_need_their_inputs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, model, _ = whole_model(tmp_path, "multiple-choice")
    (tmp_path / "a.jsonl").write_text('{"context": "cat"}\n')
    words = ["predict", str(model), str(tmp_path / "a.jsonl"), "-o", str(tmp_path / "o.jsonl")]
    assert run(words) == 2
    told = capsys.readouterr().err
    assert "no choices found among the columns context" in told
    assert "a.jsonl" in told
