"""Bars on a stream that is no terminal: few lines, and nothing that moves a cursor."""

from __future__ import annotations

import io
import subprocess
import sys

import pytest

from sora_cli.core.progress import INTERVAL, Lines, on_terminal


class Stream:
    """Lines in memory, with a clock that is set by hand."""

    def __init__(self) -> None:
        self.now, self.bytes = 100.0, io.BytesIO()
        self.lines = Lines(self.bytes, encoding="utf-8", clock=lambda: self.now)

    def after(self, seconds: float, text: str) -> Stream:
        self.now += seconds
        assert self.lines.write(text) == len(text)
        return self

    @property
    def text(self) -> str:
        self.lines.flush()
        return self.bytes.getvalue().decode()


def test_a_bar_is_shown_every_few_seconds_and_as_it_is_left() -> None:
    stream = Stream()
    for number in range(1, 25):
        stream.after(1.0, f"\rbar: {number}/25   ")
    stream.after(0.5, "\rbar: 25/25\n")
    assert INTERVAL == 5
    assert stream.text.splitlines() == [f"bar: {n}/25" for n in (1, 6, 11, 16, 21, 25)]


def test_a_bar_that_is_wiped_out_leaves_nothing() -> None:
    stream = Stream().after(0, "\ra: 0/2").after(1, "\ra: 1/2").after(1, "\r       \r")
    assert stream.after(0, "done\n").text == "a: 0/2\ndone\n"


def test_a_line_shown_last_is_not_shown_again_where_it_ends() -> None:
    stream = Stream().after(0, "\ra: 0/1").after(6, "\ra: 1/1").after(0, "\n")
    assert stream.after(0, "b\n").text == "a: 0/1\na: 1/1\nb\n"


def test_messages_pass_unchanged_between_bars() -> None:
    stream = Stream().after(0, "  one\n\ntwo").after(0, " three\n")
    stream.after(0, "\ra: 0/9").after(1, "\ra: 1/9").after(0, "note: x\n  more\n")
    stream.after(0, "\r   \r  epoch 1\n").after(0, "\ra: 2/9").after(6, "\ra: 3/9")
    expected = "  one\n\ntwo three\na: 0/9\nnote: x\n  more\n  epoch 1\na: 3/9\n"
    assert stream.text == expected


def test_a_bar_begins_its_own_line_and_colours_are_left_out() -> None:
    stream = Stream().after(0, "\x1b[1;31mred\x1b[0m text").after(0, "\r\x1b[K\x1b[Abar: 1/1")
    assert stream.text == "red text\nbar: 1/1\n"


@pytest.mark.parametrize(("tty", "term", "expected"), [
    (True, "xterm", True), (True, "dumb", False), (False, "xterm", False),
])  # fmt: skip
def test_on_terminal(tty: bool, term: str, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", term)
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: tty)
    assert on_terminal(stream) is expected
    monkeypatch.setattr(sys, "stderr", stream)
    assert on_terminal() is expected


_BARS = """
from sora_cli.core.streams import open_streams
open_streams()
from tqdm import tqdm
with tqdm(total=4, desc="outer", dynamic_ncols=True) as outer:
    for _ in range(4):
        for _ in tqdm(range(500), desc="inner", leave=False):
            pass
        outer.set_postfix({"loss": "0.5"}, refresh=False)
        outer.update()
"""


def test_bars_of_tqdm_within_bars() -> None:
    done = subprocess.run([sys.executable, "-c", _BARS], capture_output=True, check=True)
    assert not set(b"\r\x1b") & set(done.stderr)
    lines = done.stderr.decode().splitlines()
    assert lines[0] == "outer:   0%| 0/4 [00:00, ? left]"
    assert lines[-1] == "outer: 100%| 4/4 [00:00, 00:00 left, loss=0.5]"
    assert len(lines) == 2
