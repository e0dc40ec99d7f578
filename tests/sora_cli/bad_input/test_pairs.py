"""Files of pairs that do not fit: what is wrong, in which line of which file, and what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helpers_chat import chat_tokenizer, write_chat_base
from tests.helpers_errors import error_of
from tests.helpers_families import preference_rows
from tests.helpers_runs import write_rows

Rows = list[dict[str, Any]]
TEXTS = preference_rows(8)


def said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


LISTS: Rows = [
    {s: [said("user", row["prompt"]), said("assistant", row[s])] for s in ("chosen", "rejected")}
    for row in TEXTS
]
JOINED: Rows = [{s: f"{row['prompt']} {row[s]}" for s in ("chosen", "rejected")} for row in TEXTS]
UNANSWERED = {
    "chosen": [said("user", "a"), said("assistant", "no"), said("user", "red")],
    "rejected": [said("user", "a"), said("assistant", "no"), said("user", "cat")],
}


def fourth(rows: Rows, **changed: Any) -> Rows:
    return [row | changed if i == 3 else row for i, row in enumerate(rows)]


def each(**values: Any) -> Rows:
    return [{name: row.get(old, old) for name, old in values.items()} for row in TEXTS]


# what is in the file, the line that is named, and all that is said but for the place
FAULTS: dict[str, tuple[Rows, int | None, str, str]] = {
    "an empty answer": (fourth(TEXTS, rejected=" "), 4, "column 'rejected' has an empty answer",
        "write the missing text, or leave the row out"),
    "no answer": (fourth(TEXTS, chosen=None), 4, "column 'chosen' holds null, which is no text",
        ""),
    "different prompts": (fourth(LISTS, rejected=[said("user", "b"), said("assistant", "no")]), 4,
        "'chosen' and 'rejected' answer different prompts",
        "both lists must have the same messages before the last answer"),
    "no common prompt": (fourth(JOINED, rejected="Zebra"), 4,
        "the two answers have no prompt in common",
        "name the column with the prompt: data.columns.prompt=COLUMN"),
    "a number": (fourth(TEXTS, chosen=7), 4, "column 'chosen' holds 7, which is no text", ""),
    "a list beside a text": (fourth(LISTS, rejected="no"), 4,
        "column 'rejected' holds 'no', which is no list of messages, as the chosen one is", ""),
    "no answer at the end": (fourth(LISTS, **UNANSWERED), 4,
        "column 'chosen' does not end with the assistant's answer",
        "the last message is the answer: {role: assistant, content: ...}"),
    "a message without content": (fourth(LISTS, chosen=[{"role": "assistant"}]), 4,
        "column 'chosen' holds a message without 'content': {\"role\": \"assistant\"}",
        "messages are [{role: user, content: ...}, {role: assistant, content: ...}]"),
    "an empty list": (fourth(LISTS, chosen=[]), 4,
        "column 'chosen' holds [], which is no list of messages",
        "name another column: data.columns.chosen=COLUMN"),
    "answers without a prompt": (fourth(LISTS, **{s: LISTS[3][s][1:] for s in LISTS[3]}), 4,
        "column 'chosen' has an answer and no prompt", "put the prompt into the lists, or name "
        "its column: data.columns.prompt=COLUMN"),
    "a missing column": (each(prompt="prompt", chosen="chosen"), None,
        "no column for 'rejected' among prompt, chosen", "data.columns.rejected=COLUMN"),
    "unpaired rows": (each(prompt="prompt", completion="chosen", label="good"), None,
        "unpaired rows (prompt, completion, label) are not taken yet",
        "pair a good and a bad answer to each prompt: prompt, chosen, rejected"),
    "an empty prompt": (fourth(TEXTS, prompt=""), 4, "column 'prompt' has an empty prompt",
        "write the missing text, or leave the row out"),
    "equal answers": (each(prompt="prompt", chosen="chosen", rejected="chosen"), None,
        "there is nothing to learn: 8 of 8 rows have two equal answers, and are left out", ""),
}  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chat_base(tmp_path_factory.mktemp("base"))


def recipe(folder: Path, base: Path, rows: Rows) -> Path:
    files = {
        "train": write_rows(folder / "pairs.jsonl", rows),
        "validation": write_rows(folder / "validation.jsonl", rows[:3]),
    }
    blocks = {
        "model": {"path": str(base)},
        "task": {"name": "preference"},
        "data": {"files": files, "max_length": 32},
        "method": {"name": "lora", "r": 2},
        "training": {"max_steps": 1, "learning_rate": 0.01},
        "output": {"dir": str(folder / "out")},
    }
    path = folder / "r.yaml"
    path.write_text(yaml.safe_dump(blocks))
    return path


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_by_file_and_line(
    fault: str, tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, line, what, hint = FAULTS[fault]
    first, where, *then = error_of(capsys, "train", recipe(tmp_path, base, rows))
    assert first == f"error: {what}"
    place = tmp_path / "pairs.jsonl"
    named = f"{place}:{line}, split 'train'" if line else f"{place}, split 'train'"
    assert where.partition(";")[0] == named
    assert then == ([hint] if hint else [])
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").glob("*.safetensors"))


def test_messages_need_a_chat_template(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = write_chat_base(tmp_path / "base")
    (own / "chat_template.jinja").unlink()
    chat_tokenizer(template=None).save_pretrained(own)
    path = recipe(tmp_path, own, LISTS)
    first, where, hint = error_of(capsys, "train", path)
    assert first == ("error: the tokenizer has no chat template, but rows of messages need one")
    line = path.read_text().splitlines().index(f"  path: {own}") + 1
    assert where == f"{path}:{line}; split 'train'"
    assert hint == "name a chat model as model.path, or give texts, not messages"
