"""Files of pairs that do not fit: what is wrong, in which line of which file, and what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.helpers_chat import chat_tokenizer, write_chat_base
from tests.helpers_families import preference_rows
from tests.sora_cli.bad_input.runner import Case, bad
from tests.sora_cli.bad_input.test_data import lines

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


FAULTS: dict[str, Rows] = {
    "an empty answer": fourth(TEXTS, rejected=" "),
    "no answer": fourth(TEXTS, chosen=None),
    "different prompts": fourth(LISTS, rejected=[said("user", "b"), said("assistant", "no")]),
    "no common prompt": fourth(JOINED, rejected="Zebra"),
    "a number": fourth(TEXTS, chosen=7),
    "a list beside a text": fourth(LISTS, rejected="no"),
    "no answer at the end": fourth(LISTS, **UNANSWERED),
    "a message without content": fourth(LISTS, chosen=[{"role": "assistant"}]),
    "an empty list": fourth(LISTS, chosen=[]),
    "answers without a prompt": fourth(LISTS, **{s: LISTS[3][s][1:] for s in LISTS[3]}),
    "a missing column": each(prompt="prompt", chosen="chosen"),
    "unpaired rows": each(prompt="prompt", completion="chosen", label="good"),
    "an empty prompt": fourth(TEXTS, prompt=""),
    "equal answers": each(prompt="prompt", chosen="chosen", rejected="chosen"),
}
PAIRS = """\
model: {path: chat}
task: {name: preference}
data: {files: {train: pairs.jsonl, validation: pairs.jsonl}, max_length: 32}
method: {name: lora, r: 2}
training: {max_steps: 1, learning_rate: 0.01}
output: {dir: out}
"""


@pytest.mark.parametrize("rows", FAULTS.values(), ids=FAULTS)
def test_bad_pairs(rows: Rows, checked: Callable[[Case], object]) -> None:
    checked(bad(r=PAIRS, **{"pairs.jsonl": lines(rows)}))


THUMBS: Rows = [
    {"prompt": row["prompt"], "completion": row["chosen"], "label": i % 2 == 0}
    for i, row in enumerate(TEXTS)
]
SAID: Rows = [
    {"messages": [said("user", row["prompt"]), said("assistant", "no")], "label": "good"}
    for row in THUMBS
]
OF_THUMBS: dict[str, Rows] = {
    "no thumb": [row | {"label": "maybe" if i == 3 else "yes"} for i, row in enumerate(THUMBS)],
    "a rating": [row | {"label": i} for i, row in enumerate(THUMBS)],
    "a label that is missing": fourth(THUMBS, label=None),
    "an empty completion": fourth(THUMBS, completion=" "),
    "no completion": fourth(THUMBS, completion=None),
    "no column of labels": each(prompt="prompt", completion="chosen"),
    "a chat without an answer": fourth(SAID, messages=[said("user", "a")]),
    "texts without a prompt": [{"completion": "no", "label": "good"}] * 4,
    "a single row": THUMBS[:1],
}


@pytest.mark.parametrize("rows", OF_THUMBS.values(), ids=OF_THUMBS)
def test_bad_thumbs(rows: Rows, checked: Callable[[Case], object]) -> None:
    recipe = PAIRS.replace("preference", "thumbs")
    checked(bad(r=recipe, **{"pairs.jsonl": lines(rows)}))


def without_a_template(folder: Path) -> None:
    write_chat_base(folder)
    (folder / "chat_template.jinja").unlink()
    chat_tokenizer(template=None).save_pretrained(folder)


def test_messages_need_a_chat_template(checked: Callable[[Case], object]) -> None:
    recipe = PAIRS.replace("chat", "m")
    checked(bad(r=recipe, m=without_a_template, **{"pairs.jsonl": lines(LISTS)}))
