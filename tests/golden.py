"""The messages that tests have seen, stored whole in `tests/messages/`: a pytest plugin.

`told(text)` compares a text with the one that is stored for the test. There is a file for each
file of tests; `pytest --write-messages PATHS` writes the messages of these tests again.
"""

from __future__ import annotations

import difflib
import fcntl
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest

Messages = dict[str, str]
NUMBER = r"(?<![\w.])[+-]?\d+\.\d+(e[+-]\d+)?%?"
"""A number with a point: to hide what was computed, which differs between machines."""
_INDENT = "    "
_SECONDS = re.compile(r"\b\d+(\.\d+)? (s|min \d\d s)\b")
_FOREIGN = {
    r"\w+Error: (We couldn't connect|Couldn't reach|Cannot find an|An error happened).*": "~",
    r"(model '.*' cannot be loaded(?: for [\w-]+)?: )(?:.*?(<class '.*?'>))?.*": r"\1~ \2",
    r"Error while deserializing.*|Parquet magic bytes.*": "~",
    r"(?<=known: )eps, .*(png).*": r"~ \1 ~",
}
"""The words of other packages, which change with their versions."""
_PROGRESS = re.compile(r".*\d%\|.*\n?|^\n(?=.*\d%\|)", re.MULTILINE)
_PORT = re.compile(r"\b(127\.0\.0\.1|localhost):\d{4,}")
_STALE = pytest.StashKey[list[str]]()
_running: _Test | None = None


class _Test:
    """A test that runs, and the messages it has told so far."""

    def __init__(self, item: pytest.Item) -> None:
        self.item = item
        self.writes = bool(item.config.getoption("--write-messages"))
        self.file = _file_of(item)
        stored = {} if self.writes else _read_once(self.file)
        self.stored = {name: stored[name] for name in stored if _owner(name) == item.name}
        self.told: Messages = {}

    def plain(self, text: str, hide: str) -> str:
        """Return a text without what differs between runs: places, durations, what is to hide."""
        config = self.item.config
        text = _PROGRESS.sub("", text.replace("\r", "\n"))
        if own := getattr(self.item, "funcargs", {}).get("tmp_path"):
            text = text.replace(str(own), "TMP")
        base = config._tmp_path_factory.getbasetemp()  # type: ignore[attr-defined]
        text = re.sub(rf"{re.escape(str(base))}/([^\s/'\"]*?)\d+(?=\W|$)", r"\1", text)
        for place, name in ((str(config.rootpath), "REPOSITORY"), (sys.prefix, "ENVIRONMENT")):
            text = text.replace(place, name)
        text = _PORT.sub(r"\1:PORT", _SECONDS.sub("N s", text))
        for words, shown in _FOREIGN.items():
            text = re.sub(words, shown, text)
        text = re.sub(hide, "~", text) if hide else text
        return "\n".join(line.rstrip() for line in text.rstrip().splitlines())

    def end(self) -> None:
        """Store what was told, or fail if a stored message was not told."""
        if not self.writes:
            left = [name for name in self.stored if name not in self.told]
            if left:
                pytest.fail(f"not told, but in {self.file}: {left}\n{self.advice}", pytrace=False)
        elif self.told or self.file.exists():
            with _changed(self.file) as messages:
                for name in [name for name in messages if _owner(name) == self.item.name]:
                    del messages[name]
                messages |= self.told

    @property
    def advice(self) -> str:
        """The command that stores what the test tells now."""
        return f"to store what is told now: pytest -n 0 --write-messages '{self.item.nodeid}'"


def told(text: str, *, hide: str = "") -> None:
    """Hold a message against the one that is stored for this test, which may tell several.

    Args:
        hide: a regular expression of what differs between machines, such as a measured number.
    """
    __tracebackhide__ = True
    test = _running
    assert test is not None, "no test runs: a fixture cannot tell messages"
    name = test.item.name + (f" / {len(test.told) + 1}" if test.told else "")
    test.told[name] = text = test.plain(text, hide)
    expected = test.stored.get(name)
    if text != expected and not test.writes:
        found = f"is not in {test.file}" if expected is None else f"differs from {test.file}"
        lines = difflib.ndiff((expected or "").splitlines(), text.splitlines())
        difference = "\n".join(line.rstrip("\n") for line in lines)
        pytest.fail(f"the message of {name} {found}\n{difference}\n{test.advice}")


def read(file: Path) -> Messages:
    """Return the messages in a file, by name: a line with the name, then the text, indented."""
    messages: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in file.read_text("utf-8").splitlines() if file.exists() else []:
        if line and not line.startswith(_INDENT):
            lines = messages[line] = []
        else:
            lines.append(line.removeprefix(_INDENT))
    return {name: "\n".join(lines).rstrip() for name, lines in messages.items()}


_read_once = cache(read)


def stale(config: pytest.Config) -> list[str]:
    """Return the stored messages without a test, in the files whose tests were collected."""
    tests = config.rootpath / "tests"
    files = sorted((tests / "messages").rglob("*.txt"))
    of = {file: (tests / file.relative_to(tests / "messages")).with_suffix(".py") for file in files}
    return [*(str(file) for file in files if not of[file].exists()), *config.stash[_STALE]]


@contextmanager
def _changed(file: Path) -> Iterator[Messages]:
    """Give the messages in a file to be changed, one process after the other, and store them."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(file.parent, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        messages = read(file)
        yield messages
        entries = [_entry(name, messages[name]) for name in sorted(messages, key=_owner)]
        file.write_text("\n".join(entries), "utf-8")
        if not messages:
            file.unlink()
    finally:
        os.close(lock)


def _entry(name: str, text: str) -> str:
    lines = (f"{_INDENT}{line}".rstrip() for line in text.splitlines())
    return "\n".join([name, *lines, ""])


def _owner(name: str) -> str:
    """Return the test of a message, whose second one is "test / 2"."""
    return re.sub(r" / \d+$", "", name)


def _file_of(item: pytest.Item) -> Path:
    """Return the file with the messages of a test."""
    tests = item.config.rootpath / "tests"
    return (tests / "messages" / item.path.relative_to(tests)).with_suffix(".txt")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that stores messages."""
    parser.addoption(
        "--write-messages",
        action="store_true",
        help="store the messages that tests tell in tests/messages, in place of comparing them",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Refuse to store anything in CI, where no one would read the difference."""
    if config.getoption("--write-messages") and os.environ.get("CI"):
        raise pytest.UsageError("--write-messages is not for CI: run it at home, read the diff")


@pytest.hookimpl(tryfirst=True)  # before -m and -k take tests away
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Find stored messages whose test is no more; take them out where messages are written."""
    names: dict[Path, set[str]] = {}
    if not any("::" in word for word in config.args):
        for item in items:
            names.setdefault(_file_of(item), set()).add(item.name)
    config.stash[_STALE] = []
    for file, known in names.items():
        left = [name for name in _read_once(file) if _owner(name) not in known]
        config.stash[_STALE] += [f"{file}: {name}" for name in left]
        if left and config.getoption("--write-messages"):
            with _changed(file) as messages:
                for name in left:
                    messages.pop(name, None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Know which test runs; at its end all its stored messages must have been told."""
    global _running
    _running = test = _Test(item)
    try:
        yield
        test.end()
    finally:
        _running = None
