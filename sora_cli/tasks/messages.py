"""Chats in rows: lists of messages, with the tools that the assistant may call.

Messages have the keys `role` and `content`, or ShareGPT's; those of agents also have `tool_calls`,
`tool_call_id` and `name`. Tools are JSON schemas. The tokenizer's chat template decides what of
this it takes (`prompts.chat_dialogue`); here only what no template takes is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from datasets import Dataset

from sora_cli.core.words import shown_value
from sora_cli.data.places import RowError

ASSISTANT = "assistant"
CALLS = "tool_calls"
_KEYS = {"role": ("role", "from"), "content": ("content", "value")}
_ROLES = {"human": "user", "gpt": ASSISTANT}  # ShareGPT's names
_OF_TOOLS = ("name", "tool_call_id", CALLS)

Message = dict[str, Any]
Tools = list[dict[str, Any]]


def messages_of(
    row: Mapping[str, Any], columns: Mapping[str, str], system: str | None
) -> list[Message]:
    """Return a row of a chat or of an instruction as messages.

    A chat must be a list of messages and end with the assistant's answer.
    """
    first = [] if system is None else [{"role": "system", "content": system}]
    if "messages" in columns:
        messages = message_list(row[columns["messages"]], columns["messages"])
        if messages[-1]["role"] != ASSISTANT:
            raise RowError("a chat does not end with the assistant's answer")
        return [*first, *messages]
    extra = str(row[columns["input"]] or "") if "input" in columns else ""
    instruction = str(row[columns["instruction"]])
    return [
        *first,
        {"role": "user", "content": f"{instruction}\n\n{extra}" if extra else instruction},
        {"role": ASSISTANT, "content": str(row[columns["output"]])},
    ]


def tools_of(row: Mapping[str, Any], columns: Mapping[str, str]) -> Tools | None:
    """Return the tools of a row, from a list or from its JSON text; None: it has none."""
    if "tools" not in columns:
        return None
    value = _parsed(row[columns["tools"]])
    if isinstance(value, list) and all(isinstance(tool, dict) for tool in value):
        return value or None  # templates write their text about tools for an empty list, too
    if value is None or value == "":
        return None
    raise RowError(
        f"column '{columns['tools']}' holds {shown_value(value)}, which is no list of tools",
        hint="tools are JSON schemas: [{type: function, function: {name: ..., parameters: ...}}]",
    )


def message_list(value: Any, column: str, *, part: str = "messages") -> list[Message]:
    """Return messages with the keys `role` and `content`, from these keys or ShareGPT's.

    Args:
        part: the column's part in the task.
    """
    if not isinstance(value, list) or not value:
        raise RowError(
            f"column '{column}' holds {shown_value(value)}, which is no list of messages",
            hint=f"name another column: data.columns.{part}=COLUMN",
        )
    return [_message(item, column) for item in value]


def says_something(message: Message) -> bool:
    """Return True if a message has content or calls a tool."""
    content = message.get("content")
    return bool(content.strip() if isinstance(content, str) else content) or CALLS in message


def has_answer(messages: Sequence[Message]) -> bool:
    """Return True if any answer of the assistant says something."""
    return any(says_something(m) for m in messages if m["role"] == ASSISTANT)


def with_answer(value: Any, answer: str) -> Any:
    """Return a chat that ends with this answer; it replaces the chat's own last answer.

    A value that is no chat is returned unchanged.
    """
    last = value[-1] if isinstance(value, list) and value else None
    if not isinstance(last, dict):
        return value
    role, content = (next((n for n in names if n in last), names[0]) for names in _KEYS.values())
    speaker = last.get(role)
    before = value[:-1] if _ROLES.get(str(speaker), speaker) == ASSISTANT else value
    return [*before, {**dict.fromkeys(last), role: ASSISTANT, content: answer}]


def chat_rows(rows: Dataset, columns: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Yield rows without the nulls that Arrow puts into chats and tools.

    All mappings in a column of Arrow's structs have the same keys, so the arguments of one tool
    are null in the calls of all others. Columns that `datasets` keeps as JSON have no such nulls.
    """
    filled = [name for name in columns if "Json(" not in repr(rows.features[name])]
    for row in rows:
        yield {**row, **{name: _without_nulls(row[name]) for name in filled}}


def _without_nulls(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return value


def _message(item: Any, column: str) -> Message:
    known = item if isinstance(item, dict) else {}
    found = {
        part: next((known[n] for n in names if known.get(n) is not None), None)
        for part, names in _KEYS.items()
    }
    more = {key: known[key] for key in _OF_TOOLS if known.get(key)}
    if CALLS in more:
        more[CALLS] = _calls(more[CALLS], column)
    lacking = [part for part in _KEYS if found[part] is None]
    if not isinstance(found["role"], str) or (lacking and CALLS not in more):
        raise RowError(
            f"column '{column}' holds a message without '{(lacking or ['role'])[0]}': "
            f"{shown_value(item)}",
            hint="messages are [{role: user, content: ...}, {role: assistant, content: ...}]",
        )
    role = _ROLES.get(found["role"], found["role"])
    return {"role": role, "content": found["content"], **more}


def _calls(value: Any, column: str) -> list[dict[str, Any]]:
    """Return calls of tools whose arguments are objects, as templates expect them.

    OpenAI's API returns the arguments as a JSON text.
    """
    calls = []
    parsed = _parsed(value)
    for call in parsed if isinstance(parsed, list) else [parsed]:
        own = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(own, dict) or not isinstance(own.get("name"), str):
            raise RowError(
                f"column '{column}' holds a tool call without a name: {shown_value(call)}",
                hint="calls are [{type: function, function: {name: ..., arguments: {...}}}]",
            )
        arguments = _parsed(own.get("arguments"))
        if isinstance(arguments, dict):
            own = {**own, "arguments": arguments}
        calls.append({**call, "function": own} if "function" in call else own)
    return calls


def with_argument_texts(message: Message) -> Message:
    """Return a message whose calls have their arguments as JSON texts."""
    calls = []
    for call in message.get(CALLS, ()):
        own = call.get("function", call)
        if isinstance(own.get("arguments"), dict):
            own = {**own, "arguments": json.dumps(own["arguments"], ensure_ascii=False)}
        calls.append({**call, "function": own} if "function" in call else own)
    return {**message, CALLS: calls} if calls else message


def _parsed(value: Any) -> Any:
    """Return the value that a JSON text stands for; any other value is returned unchanged."""
    if isinstance(value, str):
        with suppress(ValueError, RecursionError):
            return json.loads(value)
    return value
