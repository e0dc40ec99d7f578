"""A model's prompts as a template for Ollama, in Go's template language.

The texts around marked messages give the template. Other dialogues test it, since a tokenizer's own
template may do more than put texts around messages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sora_cli.data.places import RowError
from sora_cli.tasks.dialogues import puts_start
from sora_cli.tasks.messages import ASSISTANT, Message
from sora_cli.use.speaker import Form

_SYSTEM, _USER = "system", "user"
_TRIALS = (
    ((_USER, "Name a bird."),),
    ((_SYSTEM, "Answer in one word:\n- of French"), (_USER, "Ça va?")),
    ((_USER, "2 + 2?"), (ASSISTANT, "4"), (_USER, "Really?")),
    ((_SYSTEM, "Be brief."), (_USER, "2 + 2?"), (ASSISTANT, "4"), (_USER, 'Say "4".\nTwice.'),
     (ASSISTANT, "4 4"), (_USER, "Thanks!")),
)  # fmt: skip
_DATE = "strftime_now"
"""The function by which a chat template writes the date of the day."""
_TURNS = (
    '{{ range $i, $_ := .Messages }}{{ if eq .Role "system" }}%(system)s'
    '{{ else if eq .Role "assistant" }}%(answer)s{{ .Content }}'
    "{{ else if eq $i 0 }}%(alone)s{{ .Content }}"
    "{{ else if and $.System (eq $i 1) }}%(led)s{{ .Content }}"
    "{{ else }}%(again)s{{ .Content }}{{ end }}{{ end }}%(end)s"
)
_LAST_TURN = (
    "{{ if .System }}%(system)s%(led)s{{ else }}%(alone)s{{ end }}{{ range $i, $_ := .Messages }}"
    "{{ if eq (len (slice $.Messages $i)) 1 }}{{ .Content }}{{ end }}{{ end }}%(end)s"
)


@dataclass(frozen=True)
class Frame:
    """The texts of a prompt around its messages.

    Attributes:
        alone: before the first message of the user, without a system message.
        end: after the last message; the answer begins here.
        system: before a system message; None: there is no place for one.
        led: between a system message and the first message of the user.
        answer: between a message of the user and an earlier answer; None: no earlier turns.
        again: between an earlier answer and the next message of the user.
    """

    alone: str
    end: str
    system: str | None
    led: str
    answer: str | None
    again: str

    def render(self, messages: Sequence[Message]) -> str:
        """Return a prompt as Go renders the template of `in_go`."""
        before = {("", _USER): self.alone, ("", _SYSTEM): self.system, (_SYSTEM, _USER): self.led,
                  (_USER, ASSISTANT): self.answer, (ASSISTANT, _USER): self.again}  # fmt: skip
        text, last = "", ""
        for i, message in enumerate(messages):
            role = message["role"]
            left_out = self.system is None if role == _SYSTEM else self.answer is None
            if left_out and i < len(messages) - 1:
                continue
            text += f"{before[last, role]}{message['content']}"
            last = role
        return text + self.end

    def in_go(self) -> str:
        """Return the template in Go's language."""
        brace = '{{ "{" }}'  # two together would begin Go's own words
        texts = {key: (text or "").replace("{", brace) for key, text in asdict(self).items()}
        if self.system is not None:
            texts["system"] += "{{ .System }}" if self.answer is None else "{{ .Content }}"
        return (_LAST_TURN if self.answer is None else _TURNS) % texts


def frame_of(form: Form, tokenizer: Any) -> Frame | None:
    """Return the texts of a form's prompts; None if such texts cannot give some dialogues."""
    if form.template and _DATE in str(tokenizer.chat_template):
        return None
    first = _around(form, tokenizer, _USER)
    led = _around(form, tokenizer, _SYSTEM, _USER)
    turns = _around(form, tokenizer, _USER, ASSISTANT, _USER) if form.template else None
    if first is None or (form.template and turns is None):
        return None
    frame = Frame(
        alone=first[0],
        end=first[1],
        system=led[0] if led else None,  # some templates refuse a system message, or leave it out
        led=led[1] if led else first[0],
        answer=turns[1] if turns else None,
        again=turns[2] if turns else "",
    )
    for trial in _TRIALS:
        messages = [{"role": role, "content": content} for role, content in trial]
        prompt = _prompt(form, tokenizer, messages)
        if prompt is not None and prompt != frame.render(messages):
            return None
    return frame


def _around(form: Form, tokenizer: Any, *roles: str) -> list[str] | None:
    """Return the texts before each message and after the last; None if a message is not there."""
    messages = [{"role": role, "content": f"x{i}mark{i}x"} for i, role in enumerate(roles)]
    rest = _prompt(form, tokenizer, messages)
    texts = []
    for message in messages:
        before, mark, rest = (rest or "").partition(message["content"])
        if not mark:
            return None
        texts.append(before)
    return [*texts, rest or ""]


def _prompt(form: Form, tokenizer: Any, messages: Sequence[Message]) -> str | None:
    """Return a prompt without the start token that llama.cpp adds; None if it is refused."""
    try:
        text = "".join(form.dialogue(messages, tokenizer).prompt)
    except RowError:
        return None
    return text.removeprefix(tokenizer.bos_token) if puts_start(tokenizer) else text
