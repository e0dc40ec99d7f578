"""A trained model that writes text, with prompts as in training and answers token by token."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import StoppingCriteria, StoppingCriteriaList, TextStreamer

from methods.base import Layers
from methods.inject import adapted_layers, switched_off
from sora_cli.adapter.metadata import AdapterMeta
from sora_cli.adapter.places import with_base
from sora_cli.core.console import say
from sora_cli.core.device import device_type
from sora_cli.core.errors import SoraError
from sora_cli.core.interruption import Deferral, Interrupted, deferred
from sora_cli.core.out_of_memory import telling
from sora_cli.core.shell import quote
from sora_cli.gguf.package import parsed_once
from sora_cli.run.scoring import load_target
from sora_cli.tasks import create_task
from sora_cli.tasks.base import Task
from sora_cli.tasks.dialogues import prompts_of
from sora_cli.tasks.language import decoding, room_after
from sora_cli.tasks.messages import Message
from sora_cli.tasks.prompts import Dialogue, plain_dialogue, rendered
from sora_cli.tasks.stand_ins import TEXT
from sora_cli.tasks.texts import columns_in
from sora_cli.use.described import recipe_for_rows

_STOPPING = "stopping the answer; a second signal ends the program"
_LESS = "a smaller --max-new-tokens, a shorter prompt, or --dtype bfloat16"
_INSTRUCTION, _OUTPUT = "instruction", "output"


@dataclass(frozen=True)
class Sampling:
    """The settings for choosing tokens.

    Attributes:
        settings: keyword arguments of transformers' generation; empty means the likeliest token.
        new: largest number of tokens in an answer.
        seed: of the first answer; each further answer adds 1.
    """

    settings: dict[str, Any]
    new: int
    seed: int


class Speaker:
    """A model with its tokenizer and the form of its prompts.

    Attributes:
        name: as the user gave it.
        notes: remarks on the model, for people.
        muted: True if the adapter is switched off, so that the base model answers.
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
        """True if the prompt contains earlier turns."""
        return self.form.template

    def answer(
        self,
        messages: Sequence[Message],
        sampling: Sampling,
        write: Callable[[str], object],
        *,
        turn: int = 0,
    ) -> str:
        """Generate an answer to the last message; Ctrl-C ends the answer, not the program.

        Args:
            write: called with each piece of the answer at once.
            turn: number of the answer, from 0.

        Raises:
            Interrupted: the process was told to end (SIGTERM), or a second signal came.
        """
        ids = self._ids(messages)
        decoder = not self.model.config.is_encoder_decoder
        new = self._room(len(ids), sampling.new) if decoder else sampling.new
        # the output of an encoder-decoder does not begin with the prompt
        streamer = _Pieces(self.tokenizer, write, skip_prompt=decoder)
        transformers.set_seed(sampling.seed + turn)  # `generate` takes no torch.Generator
        off = switched_off(self.layers) if self.muted else nullcontext()
        telling_size = telling(
            lambda: "the answer",
            where=lambda: f"a prompt of {len(ids)} tokens, and an answer of up to {new}",
            hint=_LESS,
        )
        with telling_size, deferred(_STOPPING) as signals, off, torch.no_grad():
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
        """Return True if the prompt leaves room for `new` tokens in the model's context."""
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
        # not cut here: `_room` and `fits` refuse a prompt that is too long
        return prompts_of([dialogue], self.tokenizer, limit=2**31)[0]


@dataclass(frozen=True)
class Form:
    """The form of a prompt.

    Attributes:
        template: True for the tokenizer's chat template; otherwise only the last message is used.
        before: prefix of the source text of a sequence-to-sequence model.
        headings: True for the headings of plain instructions, as in training.
        own: the recipe's own prompt template, with one column.
    """

    template: bool = False
    before: str = ""
    headings: bool = False
    own: str | None = None

    def dialogue(self, messages: Sequence[Message], tokenizer: Any) -> Dialogue:
        """Return the prompt as a dialogue with a stand-in for the answer."""
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
    """Load a model that writes text; return it with the system message of its training.

    Args:
        place: directory of the adapter, delta or model.
        on: base model; None means the recorded base model.
        dtype: of the weights; None means the dtype of training.
        raw: continue prompts as they are, without a template or headings.
    """
    words = [] if dtype is None else [f"model.dtype={dtype}"]
    with ExitStack() as stack:
        stack.enter_context(parsed_once(on or "", *map(str, with_base(place))))
        loaded, meta = recipe_for_rows(place, words, on=on)
        recipe = loaded.recipe
        stack.enter_context(recipe.placing())
        task = create_task(recipe.task, recipe.data)
        if not task.options.CAN_SPEAK:
            raise SoraError(
                f"{target} does not write texts: its task is {task.name}",
                where="chat and generate are for causal-lm, preference, thumbs and seq2seq",
                hint=f"to answer rows with it: sora predict {quote(target)} FILE -o OUT",
            )
        with telling(lambda: "load model", hint="--dtype bfloat16"):
            base = load_target(target, recipe, task, on=on)
            base.model.eval().to(device_type())
    form = Form() if raw else form_of(task, base.processor, meta)
    speaker = Speaker(target, base.model, base.processor, form, base.notes)
    return speaker, system_of(task)


def form_of(task: Task, tokenizer: Any, meta: AdapterMeta) -> Form:
    """Return the form of the prompts that a model was trained with."""
    options: Any = task.options
    chats = getattr(options, "prompt", "auto") in ("auto", "chat")
    if hasattr(options, "prefix"):
        return Form(before=options.prefix)
    if chats and tokenizer.chat_template is not None:
        return Form(template=True)
    if not (chats or options.prompt == "plain") and len(columns_in(options.prompt, ())) == 1:
        return Form(own=options.prompt)
    texts = {name for part in options.WHOLE_TEXTS
             for name in (*options.COLUMNS[part], task.data.columns.get(part))}  # fmt: skip
    return Form(headings=meta.task is not None and not texts >= set(meta.input_columns))


def system_of(task: Task) -> str | None:
    """Return the system message that a model was trained with; None: without one."""
    return getattr(task.options, "system", None)


class _Pieces(TextStreamer):  # type: ignore[misc]
    """Passes on pieces of a text as soon as they are decoded, and keeps the whole text."""

    def __init__(
        self, tokenizer: Any, write: Callable[[str], object], *, skip_prompt: bool
    ) -> None:
        super().__init__(tokenizer, skip_prompt=skip_prompt, skip_special_tokens=True)
        self._write, self.text = write, ""

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        if text and not self.text:
            text = text.lstrip()  # as in the texts that `sora eval` scores
        if text:
            self.text += text
            self._write(text)


class _Stopped(StoppingCriteria):  # type: ignore[misc]
    """Ends an answer after a signal."""

    def __init__(self, signals: Deferral) -> None:
        self._signals = signals

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        del scores, kwargs
        stop = self._signals.received is not None
        return torch.full((len(input_ids),), stop, dtype=torch.bool, device=input_ids.device)


def say_form(speaker: Speaker) -> None:
    """Print a note if a model has no chat template and so does not see earlier turns."""
    if not speaker.remembers:
        kind = "instruction" if speaker.form.headings else "text to continue"
        say(f"note: {speaker.name} has no chat template: each line is a separate {kind}")
