"""Rows as dialogues: sequences of text pieces that the model either only reads or learns to write.

A row is a chat (`messages`), an instruction with its answer, or plain text. Pieces are tokenised
one by one, so that a prompt has the same tokens in training and when an answer is generated after
it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sora_cli.core.words import shown_value
from sora_cli.data.places import RowError
from sora_cli.tasks.messages import (
    ASSISTANT,
    CALLS,
    Message,
    Tools,
    says_something,
    with_argument_texts,
)
from sora_cli.tasks.texts import fill

PLAIN = "### Instruction:\n{instruction}\n\n### Response:\n"
PLAIN_WITH_INPUT = "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
LAST_ONLY = "have earlier answers that the chat template changes: only the last one is learned"
NO_CALLS = "have tool calls that the chat template leaves out: they are not learned"
NO_TOOLS = "have tools that the chat template leaves out: the model does not read them"


@dataclass(frozen=True)
class Dialogue:
    """A row as a sequence of text pieces.

    Attributes:
        pieces: texts in order; True marks a text that is learned.
        reference: the last learned text, without the template's marks.
        empty: True if a learned answer has no text, only its end.
        remarks: on what the chat template does to the row.
    """

    pieces: tuple[tuple[str, bool], ...]
    reference: str
    empty: bool = False
    remarks: tuple[str, ...] = ()

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


def chat_dialogue(
    messages: Sequence[Message], tokenizer: Any, *, tools: Tools | None = None, last: bool = False
) -> Dialogue:
    """Put messages into the tokenizer's chat template; the assistant's turns are learned.

    Some templates render an earlier turn differently from the last one (without its reasoning).
    With such a template only the last answer is learned. A call that the template leaves out is
    not learned: without its call, the turn would teach the model to say nothing.

    Args:
        last: True: learn the last answer only.
    """
    chat = _Chat.of(messages, tokenizer, tools)
    answers = [i for i, message in enumerate(messages) if message["role"] == ASSISTANT]
    left_out = [i for i in answers if CALLS in messages[i] and not chat.writes_calls(i)]
    said = [i for i in answers if i not in left_out or messages[i]["content"]]
    if said[-1:] != answers[-1:]:
        raise RowError(
            "the tokenizer's chat template leaves out the tool calls of the last answer",
            hint="take a model whose chat template writes tool calls, or leave the row out",
        )
    tried = said[-1:] if last else said
    pieces = chat.pieces(tried)
    if pieces is None:
        tried = said[-1:]
        pieces = chat.pieces(tried)
    if pieces is None:
        raise RowError(
            "the tokenizer's chat template does not put an answer after its prompt",
            hint="task.prompt=plain",
            key="task.prompt",
        )
    remarks = {
        LAST_ONLY: not last and len(tried) < len(said),
        NO_CALLS: bool(left_out),
        NO_TOOLS: tools is not None and chat.without_tools() == chat.whole,
    }
    reference = messages[-1]["content"]
    if not isinstance(reference, str) or (CALLS in messages[-1] and answers[-1] not in left_out):
        reference = _as_generated(next(t for t, learned in reversed(pieces) if learned), tokenizer)
    return Dialogue(
        tuple(pieces),
        reference,
        not all(says_something(messages[i]) for i in tried),
        tuple(remark for remark, holds in remarks.items() if holds),
    )


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


@dataclass(frozen=True)
class _Chat:
    """A chat in its tokenizer's chat template.

    Attributes:
        messages: in a form that the template takes.
        whole: the text of all messages.
    """

    messages: Sequence[Message]
    tokenizer: Any
    tools: Tools | None
    whole: str

    @classmethod
    def of(cls, messages: Sequence[Message], tokenizer: Any, tools: Tools | None) -> _Chat:
        """Return a chat in the first form of its messages that the template takes."""
        failed = None
        for form in _forms(messages):
            try:
                whole = rendered(form, tokenizer, prompt=False, tools=tools)
                _check_values(form, whole)
            except RowError as error:
                failed = error  # the last form is the plainest, so its fault is in the way
            else:
                return cls(form, tokenizer, tools, whole)
        assert failed is not None
        other = (m["content"] for m in messages if not isinstance(m["content"], str | None))
        if (content := next(other, None)) is not None:
            failed.hint = (
                f"the content of a message is no text: {shown_value(content)}; write it as a text, "
                "or take a model whose template takes it"
            )
        raise failed

    def writes_calls(self, i: int) -> bool:
        """Return True if the template writes the tool calls of a message."""
        message = self.messages[i]
        silent = {"role": message["role"], "content": message["content"] or ""}
        return self._text(self.messages[: i + 1]) != self._text([*self.messages[:i], silent])

    def without_tools(self) -> str:
        """Return the text of all messages without the tools."""
        return rendered(self.messages, self.tokenizer, prompt=False)

    def pieces(self, answers: Sequence[int]) -> list[tuple[str, bool]] | None:
        """Split the text before and after each answer; None: the template changes earlier turns."""
        pieces, at, end_token = [], 0, self.tokenizer.eos_token
        for i in answers:
            before = self._text(self.messages[:i], prompt=True)
            after = self._text(self.messages[: i + 1])
            kept = self.whole.startswith(before) and self.whole.startswith(after)
            if not (kept and len(before) > at):
                return None
            answer = after[len(before) :]
            # a template may add text, such as a line break, after the end token: it is not learned
            end = answer.rfind(end_token) if end_token else -1
            learned = answer if end < 0 else answer[: end + len(end_token)]
            pieces += [(self.whole[at : len(before)], False), (learned, True)]
            at = len(before) + len(learned)
        rest = self.whole[at:]
        return [*pieces, (rest, False)] if rest.strip() else pieces

    def _text(self, messages: Sequence[Message], *, prompt: bool = False) -> str:
        return rendered(messages, self.tokenizer, prompt=prompt, tools=self.tools)


def _forms(messages: Sequence[Message]) -> Iterator[Sequence[Message]]:
    """Yield messages as they are; with empty texts for missing contents; with calls as texts.

    Some templates join every content to a text, and some join the arguments of calls.
    """
    yield messages
    if any(CALLS in message for message in messages):
        texts = [m if m["content"] is not None else {**m, "content": ""} for m in messages]
        yield texts
        yield [with_argument_texts(message) for message in texts]


def _check_values(messages: Sequence[Message], text: str) -> None:
    """Refuse a text in which a template wrote a value in Python's form, as `{'city': 'Bern'}`."""
    values = [message["content"] for message in messages]
    for message in messages:
        for call in message.get(CALLS, ()):
            values.append(call.get("function", call).get("arguments"))
    for value in values:
        nested = isinstance(value, dict | list) and str(value) != json.dumps(value)
        if nested and str(value) in text:
            raise RowError(
                f"the tokenizer's chat template takes texts only, no values: {shown_value(value)}"
            )


def _as_generated(text: str, tokenizer: Any) -> str:
    """Return a learned text as it reads once it was generated: without special tokens."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return str(tokenizer.decode(ids, skip_special_tokens=True)).strip()


def rendered(
    messages: Sequence[Message], tokenizer: Any, *, prompt: bool, tools: Tools | None = None
) -> str:
    """Put messages into the tokenizer's chat template; a template may refuse them (`RowError`).

    Args:
        prompt: True: end at the place where the assistant's answer begins.
    """
    from jinja2 import TemplateError

    # many templates would write None; transformers leaves such keys out from some 5.x on
    said = [{key: value for key, value in m.items() if value is not None} for m in messages]
    try:
        text: str = tokenizer.apply_chat_template(
            said, tools=tools, tokenize=False, add_generation_prompt=prompt
        )
    except (TemplateError, TypeError, ValueError) as error:  # of joined texts, of JSON
        raise RowError(
            f"the tokenizer's chat template refuses a row: {error}",
            hint="its roles must be system, user and assistant in turns; or task.prompt=plain",
        ) from error
    return text
