"""Answers to a prompt, a chosen and a rejected one or a single one: texts, or lists of messages.

Lists hold the answer's messages after a column with the prompt, or the whole dialogue, in which
both lists begin alike. Texts stand beside a column with the prompt. Those of a pair may begin with
it: then the prompt is what both texts have in common.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sora_cli.core.words import listed, shown_value
from sora_cli.data.places import RowError
from sora_cli.recipe.thumbs_options import COMPLETION
from sora_cli.tasks.messages import (
    ASSISTANT,
    Message,
    message_list,
    says_something,
    tools_of,
)
from sora_cli.tasks.prompts import Dialogue, chat_dialogue, plain_dialogue

SIDES = ("chosen", "rejected")
_LEAVE_OUT = "write the missing text, or leave the row out"


def is_unpaired(columns: Iterable[str]) -> bool:
    """Return True for columns of single answers that a label calls good or bad (KTO)."""
    return {"completion", "label"} <= set(columns)


def unpaired(columns: Iterable[str]) -> RowError:
    """Return the error for rows of single answers."""
    return RowError(
        "rows of one answer and a label are no pairs",
        where=f"there are: {listed(columns)}",
        hint="learn from each answer by itself (KTO): task.name=thumbs",
    )


def is_chat(value: Any) -> bool:
    """Return True if an answer is a list of messages."""
    return isinstance(value, list)


def sides_of(columns: Iterable[str]) -> list[str]:
    """Return the parts of a row that are answers."""
    there = set(columns)
    return [part for part in (*SIDES, COMPLETION) if part in there]


def dialogues_of(
    row: Mapping[str, Any],
    columns: Mapping[str, str],
    tokenizer: Any,
    *,
    chats: bool,
    template: str | None,
    system: str | None,
) -> Sequence[Dialogue]:
    """Return a dialogue for each answer of a row that `check_answers` accepts.

    Args:
        columns: by part: the answers, and "prompt" and "tools" if there are such columns.
        chats: True: put messages into the tokenizer's chat template.
        template: the recipe's own form of the prompt, with columns in braces.
        system: message before the messages of each row.
    """
    prompt = row[columns["prompt"]] if "prompt" in columns else None
    parts = sides_of(columns)
    sides = [row[columns[part]] for part in parts]
    if prompt is None and not is_chat(sides[0]):
        return _from_texts(sides, columns)
    if not is_chat(sides[0]) and not (chats or is_chat(prompt)):
        start = f"{system}\n\n" if system else ""
        given = [{"instruction": columns["prompt"], "output": columns[part]} for part in parts]
        return [plain_dialogue(row, one, template, start=start) for one in given]
    first = [] if system is None else [{"role": "system", "content": system}]
    before, answers = _messages(prompt, sides, columns)
    tools = tools_of(row, columns)
    return [
        chat_dialogue([*first, *before, answer], tokenizer, tools=tools, last=True)
        for answer in answers
    ]


def check_answers(row: Mapping[str, Any], columns: Mapping[str, str]) -> None:
    """Check a row: its answers have text, are of one kind, and belong to the same prompt."""
    prompt = row[columns["prompt"]] if "prompt" in columns else None
    if prompt is not None and not is_chat(prompt) and not isinstance(prompt, str):
        raise RowError(f"column '{columns['prompt']}' holds {shown_value(prompt)}: no text, and no "
                       "list of messages")  # fmt: skip
    if "prompt" in columns and not prompt:
        raise RowError(f"column '{columns['prompt']}' has an empty prompt", hint=_LEAVE_OUT)
    parts = sides_of(columns)
    sides = [row[columns[side]] for side in parts]
    for side, value in zip(parts, sides, strict=True):
        if not isinstance(value, list if is_chat(sides[0]) else str):
            kind = "list of messages, as the chosen one is" if is_chat(sides[0]) else "text"
            raise RowError(
                f"column '{columns[side]}' holds {shown_value(value)}, which is no {kind}"
            )
    if is_chat(sides[0]) or is_chat(prompt):
        answers = _messages(prompt, sides, columns)[1]
        tools_of(row, columns)
    elif prompt is None:
        answers = [_answer(dialogue.reference) for dialogue in _from_texts(sides, columns)]
    else:
        answers = [_answer(side) for side in sides]
    for side, answer in zip(parts, answers, strict=True):
        if not says_something(answer):
            raise RowError(f"column '{columns[side]}' has an empty answer", hint=_LEAVE_OUT)


def prompt_of(row: Mapping[str, Any], columns: Mapping[str, str]) -> str:
    """Return the prompt that the answers of a row begin with, where it has no column."""
    sides = [row[columns[side]] for side in sides_of(columns)]
    if not is_chat(sides[0]):
        return _from_texts(sides, columns)[0].pieces[0][0]
    return str((_messages(None, sides, columns)[0], tools_of(row, columns)))


def _messages(
    prompt: Any, sides: list[Any], columns: Mapping[str, str]
) -> tuple[list[Message], list[Message]]:
    """Return the messages before the answers, and the answers."""
    before, parts = _prompt_messages(prompt, columns), sides_of(columns)
    lists = [
        message_list(value, columns[side], part=side) if is_chat(value) else [_answer(value)]
        for side, value in zip(parts, sides, strict=True)
    ]
    for side, messages in zip(parts, lists, strict=True):
        if messages[-1]["role"] != ASSISTANT:
            raise RowError(
                f"column '{columns[side]}' does not end with the assistant's answer",
                hint="the last message is the answer: {role: assistant, content: ...}",
            )
    starts = [messages[:-1] for messages in lists]
    if starts[0] != starts[-1]:
        raise RowError(
            f"'{columns['chosen']}' and '{columns['rejected']}' answer different prompts",
            hint="both lists must have the same messages before the last answer",
        )
    # a list that begins with a question holds the whole dialogue, and repeats the prompt
    whole = starts[0] or not before
    if whole and not starts[0]:
        raise _no_prompt(columns[parts[0]])
    return (starts[0] if whole else before), [messages[-1] for messages in lists]


def _prompt_messages(prompt: Any, columns: Mapping[str, str]) -> list[Message]:
    if prompt is None:
        return []
    if is_chat(prompt):
        return message_list(prompt, columns["prompt"], part="prompt")
    return [{"role": "user", "content": prompt}]


def _answer(text: str) -> Message:
    return {"role": ASSISTANT, "content": text}


def _no_prompt(column: str) -> RowError:
    return RowError(
        f"column '{column}' has an answer and no prompt",
        hint="put the prompt into the lists, or name its column: data.columns.prompt=COLUMN",
    )


def _from_texts(texts: Sequence[str], columns: Mapping[str, str]) -> Sequence[Dialogue]:
    """Split two texts at the last space before they begin to differ, as TRL does."""
    if len(texts) == 1:
        raise _no_prompt(columns[COMPLETION])
    chosen, rejected = texts
    common, at = os.path.commonprefix([chosen, rejected]), 0  # noqa: RUF071 - of characters
    if chosen != rejected:
        at = max(common.rfind(" "), common.rfind("\n") + 1)
        if at < 1:
            raise RowError(
                "the two answers have no prompt in common",
                hint="name the column with the prompt: data.columns.prompt=COLUMN",
            )
    return [Dialogue(((text[:at], False), (text[at:], True)), text[at:]) for text in texts]
