"""A trained model that writes: its prompt as in training, its answers token by token."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

import torch
import transformers
from transformers import StoppingCriteria, StoppingCriteriaList, TextStreamer

from methods.base import Layers
from methods.inject import adapted_layers
from sora_cli.core.console import say
from sora_cli.core.errors import SoraError
from sora_cli.core.interruption import Deferral, Interrupted, deferred
from sora_cli.run.evaluate import switched_off
from sora_cli.run.scoring import load_target
from sora_cli.tasks import create_task
from sora_cli.tasks.dialogues import prompts_of
from sora_cli.tasks.language import decoding, room_after
from sora_cli.tasks.prompts import Dialogue, Message, plain_dialogue, rendered
from sora_cli.tasks.stand_ins import TEXT
from sora_cli.tasks.texts import columns_in
from sora_cli.use.described import described

_STOPPING = "stopping the answer; a second signal leaves"
_TEXT_PART, _INSTRUCTION, _OUTPUT = "text", "instruction", "output"


@dataclass(frozen=True)
class Sampling:
    """The way in which tokens are chosen.

    Attributes:
        settings: transformers' own; none: the likeliest token each time.
        new: tokens of an answer at most.
        seed: of the first answer; each further one has the next number.
    """

    settings: dict[str, Any]
    new: int
    seed: int


class Speaker:
    """A model with its tokenizer, and the form of its prompts.

    Attributes:
        name: as the user gave it.
        notes: what a person should know about the answers.
        muted: the adapter is switched off: the base model answers.
    """

    def __init__(
        self, name: str, model: Any, tokenizer: Any, form: Form, notes: Sequence[str] = ()
    ) -> None:
        self.name, self.model, self.tokenizer, self.form = name, model, tokenizer, form
        self.notes = list(notes)
        self.layers: Layers = adapted_layers(model)
        self.muted = False

    @property
    def remembers(self) -> bool:
        """True if earlier turns are a part of the prompt."""
        return self.form.template

    def answer(
        self,
        messages: Sequence[Message],
        sampling: Sampling,
        write: Callable[[str], object],
        *,
        turn: int = 0,
    ) -> str:
        """Write an answer to the last message; a signal ends it where it is.

        Args:
            write: takes each piece as soon as it is there.
            turn: number of the answer, from 0.

        Raises:
            SoraError: the prompt leaves no room for an answer.
            Interrupted: told to end, or interrupted twice.
        """
        ids = self._ids(messages)
        decoder = not self.model.config.is_encoder_decoder
        new = self._room(len(ids), sampling.new) if decoder else sampling.new
        streamer = _Pieces(self.tokenizer, write, skip_prompt=decoder)
        transformers.set_seed(sampling.seed + turn)
        off = switched_off(self.layers) if self.muted else nullcontext()
        with deferred(_STOPPING) as signals, off, torch.no_grad():
            prompt = torch.tensor([ids], device=self.model.device)
            self.model.generate(
                input_ids=prompt,
                attention_mask=torch.ones_like(prompt),
                generation_config=decoding(self.model, self.tokenizer, new, **sampling.settings),
                streamer=streamer,
                stopping_criteria=StoppingCriteriaList([_Stopped(signals)]),
            )
        if signals.received == signal.SIGTERM:
            raise Interrupted(signals.received)
        return streamer.text

    def fits(self, messages: Sequence[Message], new: int) -> bool:
        """Tell whether a prompt leaves room for so many tokens."""
        if self.model.config.is_encoder_decoder:
            return True
        try:
            return room_after(self.model, len(self._ids(messages)), new) == new
        except SoraError:
            return False

    def _room(self, prompt: int, new: int) -> int:
        try:
            return room_after(self.model, prompt, new)
        except SoraError as error:
            raise SoraError(error.what, hint="write a shorter prompt") from error

    def _ids(self, messages: Sequence[Message]) -> list[int]:
        dialogue = self.form.dialogue(messages, self.tokenizer)
        if self.model.config.is_encoder_decoder:
            ids: list[int] = self.tokenizer("".join(dialogue.prompt))["input_ids"]
            return ids
        return prompts_of([dialogue], self.tokenizer, limit=2**31)[0]


@dataclass(frozen=True)
class Form:
    """The form of a prompt.

    Attributes:
        template: the tokenizer's chat template; without it, only the last message counts.
        before: text that a source begins with.
        headings: under the headings that plain instructions have in training.
        own: a template of the recipe's own, of one column.
    """

    template: bool = False
    before: str = ""
    headings: bool = False
    own: str | None = None

    def dialogue(self, messages: Sequence[Message], tokenizer: Any) -> Dialogue:
        """Return the prompt, with something in the place of the answer."""
        if self.template:
            return _unanswered(rendered(messages, tokenizer, prompt=True))
        system = "".join(f"{m['content']}\n\n" for m in messages if m["role"] == "system")
        asked = messages[-1]["content"]
        if not (self.headings or self.own):
            return _unanswered(f"{system}{self.before}{asked}")
        field = columns_in(self.own, ())[0] if self.own else _INSTRUCTION
        row = {field: asked, _OUTPUT: TEXT}
        parts = {_INSTRUCTION: field, _OUTPUT: _OUTPUT}
        return plain_dialogue(row, parts, self.own, start=system)


def _unanswered(prompt: str) -> Dialogue:
    return Dialogue(((prompt, False), (TEXT, True)), "")


def load_speaker(
    target: str,
    place: Path,
    *,
    on: str | None = None,
    dtype: str | None = None,
    raw: bool = False,
) -> tuple[Speaker, str | None]:
    """Load a model that writes texts; return it, and the system message it was trained with.

    Args:
        place: of the adapter, delta or model.
        on: the base model; None: the one that is recorded.
        dtype: of the weights; None: as in training.
        raw: prompts are gone on with as they are.

    Raises:
        SoraError: it cannot be loaded, or writes no texts.
    """
    words = [] if dtype is None else [f"model.dtype={dtype}"]
    loaded, meta = described(place, words, on=on)
    recipe = loaded.recipe
    with recipe.placing():
        task = create_task(recipe.task, recipe.data)
        if not task.writes_answers:
            raise SoraError(
                f"{target} does not write texts: its task is {task.name}",
                where="chat and generate are for causal-lm and seq2seq",
                hint=f"to have it answer rows: sora predict {quote(target)} FILE -o OUT",
            )
        base = load_target(target, recipe, task, on=on)
    base.model.eval()
    options: Any = task.options
    chats = getattr(options, "prompt", "auto") in ("auto", "chat")
    if raw:
        form = Form()
    elif hasattr(options, "prefix"):
        form = Form(before=options.prefix)
    elif chats and base.processor.chat_template is not None:
        form = Form(template=True)
    elif not (chats or options.prompt == "plain") and len(columns_in(options.prompt, ())) == 1:
        form = Form(own=options.prompt)
    else:
        texts = {*options.COLUMNS[_TEXT_PART], recipe.data.columns.get(_TEXT_PART)}
        form = Form(headings=meta.task is not None and not texts >= set(meta.input_columns))
    speaker = Speaker(target, base.model, base.processor, form, base.notes)
    return speaker, getattr(options, "system", None)


class _Pieces(TextStreamer):  # type: ignore[misc]
    """Hands pieces of a text on as they are decoded, and keeps all of it."""

    def __init__(
        self, tokenizer: Any, write: Callable[[str], object], *, skip_prompt: bool
    ) -> None:
        super().__init__(tokenizer, skip_prompt=skip_prompt, skip_special_tokens=True)
        self._write, self.text = write, ""

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        if text and not self.text:
            text = text.lstrip()  # as what is scored
        if text:
            self.text += text
            self._write(text)


class _Stopped(StoppingCriteria):  # type: ignore[misc]
    """Ends an answer where a signal has come."""

    def __init__(self, signals: Deferral) -> None:
        self._signals = signals

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        del scores, kwargs
        stop = self._signals.received is not None
        return torch.full((len(input_ids),), stop, dtype=torch.bool, device=input_ids.device)


def say_form(speaker: Speaker) -> None:
    """Say what a person should know about a model's prompts."""
    if not speaker.remembers:
        kind = "an instruction" if speaker.form.headings else "a text to go on with"
        say(f"note: {speaker.name} has no chat template: each line is {kind} by itself")
