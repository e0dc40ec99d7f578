"""Typed lines on a pseudo-terminal: no signal is lost, and readline edits and remembers lines."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.shared_files import ROOT

READING = """
import readline, sys
from sora_cli.core.interruption import Interrupted, raise_on_signals
from sora_cli.core.typed_lines import typed_lines

raise_on_signals()
while True:
    try:
        sys.stdout.write("answer\\n")
        sys.stdout.flush()
        for line in typed_lines():
            print("got", repr(line.rstrip("\\n")), flush=True)
    except Interrupted:
        continue
"""
"""It answers with a word to the start and to each signal, and with its `repr` to each line."""
ELSEWHERE = """
import signal, threading
threading.Thread(target=threading.Event().wait, daemon=True).start()
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
"""
"""Lets another thread get the signal, which then interrupts no call of the main thread."""
LIMIT = 120.0  # seconds for anything to come; microseconds to milliseconds are usual


class Reader:
    """A process that reads typed lines; its stdout is a terminal.

    Args:
        pipe: its stdin is a pipe.
        code: to be run first.
    """

    def __init__(self, *, pipe: bool = False, code: str = "") -> None:
        self.out, terminal = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", code + READING],
            stdin=subprocess.PIPE if pipe else terminal,
            stdout=terminal, stderr=terminal,
            env={**os.environ, "PYTHONPATH": str(ROOT), "INPUTRC": os.devnull, "TERM": "xterm"},
        )  # fmt: skip
        os.close(terminal)
        self.read_to("answer")

    def read_to(self, words: str) -> None:
        said = b""
        while words.encode() not in said:
            assert select.select([self.out], [], [], LIMIT)[0], f"waited for {words}: {said!r}"
            said += os.read(self.out, 4096)

    def type(self, keys: str) -> None:
        os.write(self.out, keys.encode())

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        os.close(self.out)


@pytest.fixture(scope="module")
def terminal() -> Iterator[Reader]:
    with closing(Reader()) as reader:
        yield reader


def test_a_signal_right_before_the_read_is_not_lost(terminal: Reader) -> None:
    """The gap between Python's last look for signals and the read takes some microseconds."""
    for i in range(400):
        due = time.perf_counter_ns() + i % 100 * 1000
        while time.perf_counter_ns() < due:
            pass
        terminal.process.send_signal(signal.SIGTERM)
        terminal.read_to("answer")


@pytest.mark.parametrize("pipe", [False, True])
def test_a_signal_that_does_not_interrupt_the_read_is_not_lost(pipe: bool) -> None:
    with closing(Reader(pipe=pipe, code=ELSEWHERE)) as reader:
        for _ in range(20):
            reader.process.send_signal(signal.SIGTERM)
            reader.read_to("answer")


def test_lines_are_edited_and_remembered(terminal: Reader) -> None:
    up, start_of_line = "\x1b[A", "\x01"
    terminal.type("hello\r")
    terminal.read_to("got 'hello'")
    terminal.type(f"world{start_of_line}big \r")
    terminal.read_to("got 'big world'")
    terminal.type(f"{up}{up}, again\r")
    terminal.read_to("got 'hello, again'")
    terminal.process.send_signal(signal.SIGINT)
    terminal.read_to("answer")
    terminal.type(f"{up}\r")
    terminal.read_to("got 'hello, again'")
