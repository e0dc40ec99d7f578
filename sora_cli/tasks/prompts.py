"""Rows as dialogues: sequences of text pieces that the model either only reads or learns to write.

A row is a chat (`messages`), an instruction with its answer, or plain text. Pieces are tokenised
one by one, so that a prompt has the same tokens in training and when an answer is generated after
it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sora_cli.core.words import shown_value
from sora_cli.data.places import RowError
from sora_cli.tasks.texts import fill

PLAIN = "### Instruction:\n{instruction}\n\n### Response:\n"
PLAIN_WITH_INPUT = "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
_KEYS = {"role": ("role", "from"), "content": ("content", "value")}
ASSISTANT = "assistant"
_ROLES = {"human": "user", "gpt": ASSISTANT}  # ShareGPT's names

Message = dict[str, str]


@dataclass(frozen=True)
class Dialogue:
    """A row as a sequence of text pieces.

    Attributes:
        pieces: texts in order; True marks a text that is learned.
        reference: the last learned text, without the template's marks.
        empty: True if a learned answer has no text, only its end.
    """

    pieces: tuple[tuple[str, bool], ...]
    reference: str
    empty: bool = False

    @property
    def prompt(self) -> tuple[str, ...]:
        """The pieces before the last learned piece."""
        last = max(i for i, (_, learned) in enumerate(self.pieces) if learned)
        return tuple(text for text, _ in self.pieces[:last])


def uses_template(prompt: str, tokenizer: Any) -> bool:
    """Return True if rows go through the tokenizer's chat template.

    Args:
        prompt: the recipe's form of the prompt.
    """
    return prompt == "chat" or (prompt == "auto" and tokenizer.chat_template is not None)


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


def has_answer(messages: Sequence[Message]) -> bool:
    """Return True if any answer of the assistant has text."""
    return any(m["content"].strip() for m in messages if m["role"] == ASSISTANT)


def chat_dialogue(messages: Sequence[Message], tokenizer: Any) -> Dialogue:
    """Put messages into the tokenizer's chat template; the assistant's turns are learned.

    Some templates render an earlier turn differently from the last one (without its reasoning).
    With such a template only the last answer is learned.
    """
    whole = rendered(messages, tokenizer, prompt=False)
    answers = [i for i, message in enumerate(messages) if message["role"] == ASSISTANT]
    pieces = _learned_pieces(whole, messages, answers, tokenizer)
    if pieces is None:
        answers = answers[-1:]
        pieces = _learned_pieces(whole, messages, answers, tokenizer)
    if pieces is None:
        raise RowError(
            "the tokenizer's chat template does not put an answer after its prompt",
            hint="task.prompt=plain",
            key="task.prompt",
        )
    empty = not all(messages[i]["content"].strip() for i in answers)
    return Dialogue(tuple(pieces), messages[-1]["content"], empty)


def plain_dialogue(
    row: Mapping[str, Any], columns: Mapping[str, str], template: str | None, *, start: str
) -> Dialogue:
    """Put an instruction under headings, or into the recipe's template, and add its answer.

    Args:
        template: columns in braces; None: headings.
        start: text before the prompt, such as a system message.
    """
    if template is None:
        extra = str(row[columns["input"]] or "") if "input" in columns else ""
        values = {"instruction": row[columns["instruction"]], "input": extra}
        prompt = fill(PLAIN_WITH_INPUT if extra else PLAIN, values)
    else:
        prompt = fill(template, row)
    answer = str(row[columns["output"]])
    return Dialogue(((start + prompt, False), (answer, True)), answer, not answer.strip())


def _learned_pieces(
    whole: str, messages: Sequence[Message], answers: Sequence[int], tokenizer: Any
) -> list[tuple[str, bool]] | None:
    """Split the text before and after each answer; None if the template changes earlier turns."""
    pieces, at = [], 0
    for i in answers:
        before = rendered(messages[:i], tokenizer, prompt=True)
        after = rendered(messages[: i + 1], tokenizer, prompt=False)
        if not (whole.startswith(before) and whole.startswith(after) and len(before) > at):
            return None
        answer = after[len(before) :]
        # a template may add text, such as a line break, after the end token: it is not learned
        end = answer.rfind(tokenizer.eos_token) if tokenizer.eos_token else -1
        learned = answer if end < 0 else answer[: end + len(tokenizer.eos_token)]
        pieces += [(whole[at : len(before)], False), (learned, True)]
        at = len(before) + len(learned)
    return [*pieces, (whole[at:], False)] if at < len(whole) and whole[at:].strip() else pieces


def rendered(messages: Sequence[Message], tokenizer: Any, *, prompt: bool) -> str:
    """Put messages into the tokenizer's chat template; a template may refuse them (`RowError`).

    Args:
        prompt: True: end at the place where the assistant's answer begins.
    """
    from jinja2 import TemplateError

    try:
        text: str = tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=prompt
        )
    except TemplateError as error:
        raise RowError(
            f"the tokenizer's chat template refuses a row: {error}",
            hint="its roles must be system, user and assistant in turns; or task.prompt=plain",
        ) from error
    return text


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


def _message(item: Any, column: str) -> Message:
    message = {}
    for part, names in _KEYS.items():
        value = (
            next((item[n] for n in names if n in item), None) if isinstance(item, dict) else None
        )
        if not isinstance(value, str):
            raise RowError(
                f"column '{column}' holds a message without '{part}': {shown_value(item)}",
                hint="messages are [{role: user, content: ...}, {role: assistant, content: ...}]",
            )
        message[part] = value
    return {"role": _ROLES.get(message["role"], message["role"]), "content": message["content"]}
