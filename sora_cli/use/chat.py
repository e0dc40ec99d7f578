"""A chat with one model, or with two models side by side."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import zip_longest

from sora_cli.core.console import printable, say
from sora_cli.tasks.messages import Message
from sora_cli.use.speaker import Sampling, Speaker

HELP = """\
/base         switch the adapter off, so that the base model answers, or on again
/reset        forget the conversation
/system TEXT  start a new conversation with this system message; without TEXT, with none
/help         show these lines
/quit         leave; Ctrl-D and, at the prompt, Ctrl-C leave, too; Ctrl-C stops an answer"""
_COLUMN = 48
"""Smallest width of a column, in characters, for two answers side by side."""
_GAP = 3


@dataclass
class Chat:
    """A conversation with one or two speakers.

    Attributes:
        system: system message, or None.
        write: called with each piece of an answer.
        width: of the terminal, in characters; None without a terminal: answers come one below the
            other.
        turn: number of answered messages.
        said: messages so far, by number of the speaker: each model sees its own answers.
    """

    speakers: list[Speaker]
    sampling: Sampling
    system: str | None
    write: Callable[[str], object]
    width: int | None = None
    turn: int = 0
    said: dict[int, list[Message]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Start the conversation with the system message."""
        self.reset()

    def reset(self) -> None:
        """Forget all messages except the system message."""
        first = [] if self.system is None else [{"role": "system", "content": self.system}]
        self.said = {number: list(first) for number in range(len(self.speakers))}
        self.turn = 0

    def run(self, lines: Iterable[str]) -> None:
        """Answer lines and obey commands until the lines end, or until /quit.

        Raises:
            Interrupted: the process was told to end.
        """
        for line in lines:
            text = line.strip()
            if text == "/quit":
                return
            if text.startswith("/"):
                self._obey(*text.partition(" ")[::2])
            elif text:
                self._answer(text)

    def _obey(self, word: str, rest: str) -> None:
        match word:
            case "/base":
                self._switch()
            case "/reset":
                self.reset()
                say("the conversation is forgotten")
            case "/system":
                self.system = rest.strip() or None
                self.reset()
                with_it = "with this" if self.system else "without a"
                say(f"new conversation {with_it} system message")
            case "/help":
                for line in HELP.splitlines():
                    say(line)
            case _:
                say(f"there is no command '{word}'; /help lists the commands")

    def _switch(self) -> None:
        for speaker in self.speakers:
            if not speaker.layers:
                say(f"{speaker.name} has no adapter to switch off")
                continue
            speaker.muted = not speaker.muted
            state = "off: the base model answers" if speaker.muted else "on"
            say(f"adapter of {speaker.name}: {state}")

    def _answer(self, text: str) -> None:
        for number in self.said:
            self.said[number].append({"role": "user", "content": text})
        if len(self.speakers) == 1:
            self._say(0, self.write)
            self.write("\n")
        elif self.width is not None and self.width >= 2 * _COLUMN + _GAP:
            self._side_by_side(self.width)
        else:
            for number, speaker in enumerate(self.speakers):
                self.write(f"--- {_title(speaker)}\n")
                self._say(number, self.write)
                self.write("\n")
        self.turn += 1

    def _side_by_side(self, width: int) -> None:
        answers = [self._say(number, lambda _: None) for number in self.said]
        titles = [_title(speaker) for speaker in self.speakers]
        for line in columns(titles, answers, width):
            self.write(f"{line}\n")

    def _say(self, number: int, write: Callable[[str], object]) -> str:
        speaker, said = self.speakers[number], self.said[number]
        self._shorten(speaker, said)
        answer = speaker.answer(said, self.sampling, write, turn=self.turn)
        said.append({"role": "assistant", "content": answer.strip()})
        return answer

    def _shorten(self, speaker: Speaker, said: list[Message]) -> None:
        """Forget the oldest turns until the conversation fits into the model's context."""
        first, lost = int(said[0]["role"] == "system"), 0
        while len(said) > first + 1 and not speaker.fits(said, self.sampling.new):
            del said[first : first + 2]  # templates want question and answer in turns: both go
            lost += 1
        if lost:
            turns = "turn" if lost == 1 else "turns"
            say(f"note: too long for {speaker.name}: the oldest {lost} {turns} forgotten")


def columns(titles: list[str], texts: list[str], width: int) -> Iterator[str]:
    """Yield the lines of two texts side by side, under their titles."""
    from textwrap import wrap

    size = (width - _GAP) // 2
    sides = []
    for title, text in zip(titles, texts, strict=True):
        lines = [title[:size], "-" * min(len(title), size)]
        for line in shown(text).strip().splitlines():
            lines += wrap(line, size, drop_whitespace=True) or [""]
        sides.append(lines)
    for left, right in zip_longest(*sides, fillvalue=""):
        yield f"{left:<{size}}{' ' * _GAP}{right}".rstrip()


def shown(text: str) -> str:
    """Return a text that is safe for a terminal: control characters escaped, line breaks kept."""
    return "".join(c if c == "\n" else printable(c) for c in text.expandtabs())


def to_stdout(piece: str) -> None:
    """Write a piece of an answer to stdout at once; escape control characters on a terminal."""
    sys.stdout.write(shown(piece) if sys.stdout.isatty() else piece)
    sys.stdout.flush()


def _title(speaker: Speaker) -> str:
    return f"{speaker.name}{' (adapter off)' if speaker.muted else ''}"
