"""Every state in which a kill may leave a directory: recorded once, built again, and gone on from.

    with recorded(folder) as log:
        assert run(["train", ...]) == 0
    figures = replayed(log, again=[["train", ..., "--resume"]], asks=[...], result=...)

While the command runs in this process, an audit hook hears of each file that is opened for writing,
renamed or removed, and of each directory; `os.fsync` and the exchange of two directories, of which
no hook hears, are wrapped. At each of these operations the directory is read. These states are the
prefixes of the log; each file that was written between two of them is also torn (`TEARS`).

`python -m tests.replay KIND NUMBER train ...` is `sora train ...` in a process that kills itself
before the NUMBER-th flush (from 1) of a file or directory with KIND in its path.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from functools import cache
from io import StringIO
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from sora_cli.app import main, run
from sora_cli.core import atomic
from sora_cli.core.atomic import is_leftover
from sora_cli.core.lock import FILE_NAME as LOCK
from tests import blank

Tree = Mapping[str, bytes | None]
"""The content of each file of a directory, by its path there; None: a directory."""
TEARS: tuple[Callable[[bytes], bytes], ...] = (
    lambda content: b"",  # noqa: ARG005
    lambda content: content[: len(content) // 2],
    lambda content: content[:-1],
)
"""What is left of a file in whose write the process was killed."""
IN_PLACE = re.compile(r"\.lock|.*\.log")
"""Names of the files that are written where they stand: see `UNTOUCHED` in test_architecture."""
SCRATCH = re.compile(r"\.sora-rows-\w{8}")  # a TemporaryDirectory of `sora predict`
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_HEARD = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.link"}


@dataclass(frozen=True)
class Operation:
    """An operation of a command, with paths in the directory.

    Attributes:
        kind: "open", "rename", "exchange", "remove", "rmdir", "mkdir", "truncate", "link", "sync".
    """

    kind: str
    path: str
    to: str = ""


@dataclass
class Log:
    """The operations of a command, and the directory before each and after the last.

    Attributes:
        faults: operations that a kill or a power cut would not survive, and those unheard of.
        torn: states with a torn file, each with the number of the prefix that it follows.
    """

    root: Path
    operations: list[Operation] = field(default_factory=list)
    states: list[Tree] = field(default_factory=list)
    torn: list[tuple[int, Tree]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    _synced: dict[str, object] = field(default_factory=dict)
    _renamed: set[str] = field(default_factory=set)
    _contents: dict[bytes, bytes] = field(default_factory=dict)

    def note(self, operation: Operation) -> None:
        """Note the state before an operation."""
        now = self._read()
        self._compare(now)
        self.states.append(now)
        self.operations.append(operation)
        self._check(operation, now)

    def close(self) -> None:
        """Note the state after the last operation."""
        now = self._read()
        self._compare(now)
        self.states.append(now)

    @property
    def shapes(self) -> set[frozenset[tuple[str, str]]]:
        """The shapes of all states."""
        return {shape(tree) for tree in (*self.states, *(tree for _, tree in self.torn))}

    @property
    def kinds(self) -> set[tuple[str, str, str]]:
        """Each kind of operation with the kinds of paths."""
        return {(o.kind, _kind(o.path), _kind(o.to)) for o in self.operations}

    def _read(self) -> Tree:
        tree = read(self.root)
        return {p: None if c is None else self._contents.setdefault(c, c) for p, c in tree.items()}

    def _compare(self, now: Tree) -> None:
        """Find what was written since the last state, and what changed without an operation."""
        if not self.states:
            return
        before, operation = self.states[-1], self.operations[-1]
        after = applied(before, operation)
        if operation.kind in {"mkdir", "rmdir", "remove", "rename", "exchange"}:
            # one that failed changes nothing: a directory that is there, a file that is not
            after = before if _lasting(now) == _lasting(before) else after
        for path in sorted({*now, *after}):
            is_known = path in now and path in after
            if is_known and now[path] is after[path]:
                continue
            if path in now and now[path] is not None:
                content = now[path] or b""
                torn = {tear(content) for tear in TEARS} - {content}
                self.torn += [(len(self.states), {**now, path: tear}) for tear in sorted(torn)]
            if not (is_temporary(path) or IN_PLACE.fullmatch(PurePosixPath(path).name)):
                self.faults.append(f"{path} has changed unheard of after {operation}")

    def _check(self, operation: Operation, now: Tree) -> None:
        """Find what would be lost in a power cut: names before contents, or in another order."""
        kind, path, to = operation.kind, operation.path, operation.to
        name = PurePosixPath(path).name
        if kind == "sync":
            self._synced[path] = _own(now, path)
            self._renamed.discard(path)
            return
        if kind == "open" and not (is_temporary(path) or IN_PLACE.fullmatch(name)):
            self.faults.append(f"{path} is written where it stands")
        # what is set aside is the last copy until the new name is on the disk
        lasting = [p for p in (path, to) if p and (not is_temporary(p) or ".replaced" in p)]
        if lasting and kind in {"rename", "exchange", "remove"} and path in now:
            self.faults += [f"{path}: {kind} before {p}/ is on the disk" for p in self._renamed]
        if kind not in {"rename", "exchange"}:
            return
        moved = [p for p in now if _is_below(p, path)]
        if is_temporary(path) and not is_temporary(to):
            self._renamed.add(_parent(to))
            if not path.endswith(".replaced"):
                late = (p for p in moved if self._synced.get(p) != _own(now, p))
                self.faults += [f"{to} is in place before {p} is on the disk" for p in late]
        for p in moved:
            self._synced[to + p.removeprefix(path)] = self._synced.pop(p, None)


def read(root: Path) -> Tree:
    """Read a directory."""
    found: dict[str, bytes | None] = {}
    for folder, folders, files in os.walk(root):
        place = Path(folder).relative_to(root)
        for name in folders:
            found[(place / name).as_posix()] = None
        for name in files:
            found[(place / name).as_posix()] = Path(folder, name).read_bytes()
    return found


def build(root: Path, tree: Tree) -> None:
    """Write a directory anew."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    for path in sorted(tree):
        content = tree[path]
        if content is None:
            (root / path).mkdir()
        else:
            (root / path).write_bytes(content)


def applied(tree: Tree, operation: Operation) -> Tree:
    """Return a directory after an operation."""
    kind, path, to = operation.kind, operation.path, operation.to
    if kind == "open":
        return tree if path in tree else {**tree, path: b""}
    if kind == "mkdir":
        return {**tree, path: None}
    if kind in {"remove", "rmdir"}:
        return {p: content for p, content in tree.items() if p != path}
    if kind not in {"rename", "exchange"}:
        return tree
    left = {p: c for p, c in tree.items() if not (_is_below(p, path) or _is_below(p, to))}
    left |= {to + p.removeprefix(path): c for p, c in tree.items() if _is_below(p, path)}
    if kind == "exchange":
        left |= {path + p.removeprefix(to): c for p, c in tree.items() if _is_below(p, to)}
    return left


def is_temporary(path: str) -> bool:
    """Tell whether a path is of a leftover, or inside one."""
    return _leftover(path) is not None


def lasting(tree: Tree) -> Tree:
    """Return a directory without leftovers, locks and logs."""
    return {p: c for p, c in _lasting(tree).items() if not IN_PLACE.fullmatch(Path(p).name)}


def key(tree: Tree) -> frozenset[tuple[str, object]]:
    """Return what tells states apart: leftovers of one name are of one kind, as whole locks are.

    That holds as long as nobody reads them, which `replayed` sees to.
    """
    locks = {(p, _state(p, c)) for p, c in tree.items() if PurePosixPath(p).name == LOCK}
    return frozenset({*lasting(tree).items(), *locks, *_leftovers(tree)})


def news(tree: Tree) -> frozenset[tuple[str, object]]:
    """Return why to go on from a state: where it has leftovers, whatever else; or all else."""
    return _places(tree) or key(tree)


def shape(tree: Tree) -> frozenset[tuple[str, str]]:
    """Return names and whether each file is whole: what two runs of a command have in common."""
    return frozenset((_plain(p), _state(p, content)) for p, content in tree.items())


def outline(tree: Tree) -> frozenset[tuple[str, str]]:
    """Return the same, with one entry for all leftovers of a directory."""
    return shape(_lasting(tree)) | _places(tree)


def _state(path: str, content: bytes | None) -> str:
    if not content:
        return "directory" if content is None else "empty"
    if path.endswith(".json") or PurePosixPath(path).name.startswith(LOCK):
        try:
            json.loads(content)
        except ValueError:
            return "torn"
    if ".safetensors" in path:
        header = 8 + int.from_bytes(content[:8], "little")
        try:
            offsets = [t["data_offsets"][1] for t in json.loads(content[8:header]).values()
                       if "data_offsets" in t]  # fmt: skip
        except ValueError:
            return "torn"
        return "whole" if len(content) == header + max(offsets, default=0) else "torn"
    return "whole"


def _leftover(path: str) -> str | None:
    """Return the leftover that a path is in: its first temporary part, and what is above."""
    parts = PurePosixPath(path).parts
    for number, part in enumerate(parts):
        if is_leftover(Path(part)) or SCRATCH.fullmatch(part):
            return "/".join(parts[: number + 1])
    return None


def _leftovers(tree: Tree) -> frozenset[tuple[str, str]]:
    return frozenset((_plain(place), "leftover") for p in tree if (place := _leftover(p)))


def _places(tree: Tree) -> frozenset[tuple[str, str]]:
    """Return the directories with leftovers: those of one ending are tidied alike."""
    return frozenset((_parent(p), p.rpartition(".")[2]) for p, _ in _leftovers(tree))


def _plain(path: str) -> str:
    """Return a path without the random parts of its names."""
    return re.sub(r"\.[0-9a-f]{8}(?=\.partial|\.replaced)|(?<=\.sora-rows-)\w{8}", "", path)


def _kind(path: str) -> str:
    return re.sub(r"\d+", "N", _plain(path))


def _lasting(tree: Tree) -> dict[str, bytes | None]:
    return {p: c for p, c in tree.items() if not is_temporary(p)}


def _kept(tree: Tree) -> set[str]:
    """Return all names but those of leftovers in the user's own directory, and of old locks."""
    own = {p for p in tree if not is_temporary(p) or "/" in (_leftover(p) or "")}
    return {p for p in own if PurePosixPath(p).name != LOCK}


def _own(tree: Tree, path: str) -> object:
    """Return what a flush of a path brings to the disk: a file's content, a directory's names."""
    content = tree.get(path)
    return content if content is not None else frozenset(p for p in tree if _parent(p) == path)


def _parent(path: str) -> str:
    return path.rpartition("/")[0]


def _is_below(path: str, place: str) -> bool:
    return path == place or path.startswith(f"{place}/")


class _Ear:
    """Hears of this process's operations; Python has no way to take an audit hook out again."""

    def __init__(self) -> None:
        self.log: Log | None = None
        self.unread: tuple[Path, frozenset[str]] | None = None
        self.read: set[str] = set()
        self._lock, self._busy = threading.Lock(), 0

    def hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Note an operation in the directory that is watched."""
        if event not in _HEARD or (self.log is None and self.unread is None):
            return
        if self._busy == threading.get_ident():
            return  # this is our own
        with self._lock:
            self._busy = threading.get_ident()
            try:
                self._heard(event, arguments)
            finally:
                self._busy = 0

    def _heard(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            file, _, flags = arguments
            if isinstance(file, int):
                return
            if self.unread is not None and not flags & _WRITING:
                self._note_reading(_at(file))
            if not flags & _WRITING:
                return
        if self.log is None:
            return
        first, *rest = arguments
        if event in {"os.rename", "os.link"}:
            to, *places = rest
            paths = [_at(first, places[0] if places else -1), _at(to, places[-1] if places else -1)]
        else:
            paths = [_at(first, rest[-1] if event in {"os.remove", "os.rmdir", "os.mkdir"} else -1)]
        self.tell(event.removeprefix("os."), *paths)

    def tell(self, kind: str, *paths: Path) -> None:
        """Note an operation if it is in the directory of the log."""
        log = self.log
        if log is not None and any(log.root in (path, *path.parents) for path in paths):
            places = (os.path.relpath(path, log.root) for path in paths)
            log.note(Operation(kind, *("" if place == "." else place for place in places)))

    def _note_reading(self, path: Path) -> None:
        assert self.unread is not None
        root, leftovers = self.unread
        if root in path.parents and path.is_file():
            place = _leftover(path.relative_to(root).as_posix())
            if place in leftovers:
                self.read.add(path.name)


def _at(path: Any, descriptor: int = -1) -> Path:
    if isinstance(path, int):
        return Path(f"/proc/self/fd/{path}").readlink()
    above = Path.cwd() if descriptor == -1 else Path(f"/proc/self/fd/{descriptor}").readlink()
    return Path(os.path.normpath(above / os.fsdecode(path)))


@cache
def _listening() -> _Ear:
    ear = _Ear()
    sys.addaudithook(ear.hear)
    return ear


@contextmanager
def recorded(root: Path, *, exchange: bool = True) -> Iterator[Log]:
    """Record what is done to a directory in this process.

    Args:
        exchange: False: as on a file system that cannot exchange two directories.
    """
    log = Log(root.resolve())
    exchanged = atomic._exchange

    def fsync(descriptor: int) -> None:  # the disk itself is not waited for
        ear.tell("sync", _at(descriptor))

    def exchanging(a: Path, b: Path) -> bool:
        if exchange:
            ear.tell("exchange", a.absolute(), b.absolute())
        return exchange and exchanged(a, b)

    ear = _listening()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        patch.setattr(atomic, "_exchange", exchanging)
        ear.log = log
        try:
            yield log
        finally:
            ear.log = None
    log.close()
    assert not log.faults, "\n".join(log.faults)


@dataclass(frozen=True)
class Answer:
    """What a command ended with."""

    code: int
    error: tuple[str, ...] = ()
    said: str = ""


def answer(words: Sequence[str]) -> Answer:
    """Run a command, which must end well or with a clear error: three lines, no traceback."""
    out, err = StringIO(), StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = run(words)
    lines = err.getvalue().splitlines()
    first = next((n for n, line in enumerate(lines) if line.startswith("error: ")), len(lines))
    told = f"{' '.join(words)}\n{err.getvalue()}"
    assert "Traceback" not in told, told
    assert "internal error" not in told, told
    assert len(lines) - first <= 3, told
    assert (code == 2) == (first < len(lines)), told
    return Answer(code, tuple(lines[first:]), out.getvalue())


@dataclass(frozen=True)
class Ask:
    """A command that only reads.

    Attributes:
        of: the paths it depends on, as beginnings; it is asked once for each of their states.
        may: tells whether an answer is right for a directory.
    """

    words: list[str]
    of: tuple[str, ...] = ("",)
    may: Callable[[Tree, Answer], bool] = lambda _, answer: answer.code in {0, 2}


@dataclass
class Figures:
    """What a replay did."""

    prefixes: int = 0
    tears: int = 0
    distinct: int = 0
    trained: int = 0
    answers: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        told = ", ".join(f"{n} x {words}" for words, n in sorted(self.answers.items()))
        return (
            f"{self.prefixes} prefixes and {self.tears} tears, {self.distinct} distinct states, "
            f"{self.trained} gone on from; {told}"
        )


def replayed(
    log: Log,
    again: Sequence[Sequence[str]],
    result: Callable[[], object],
    *,
    asks: Sequence[Ask] = (),
    only: Callable[[Tree], object] = news,
) -> Figures:
    """Open every state of a log, and go on from each that is new.

    Args:
        again: what a user would type next; if a command ends with a user error, the next one.
        result: what must be the same in the end.
        only: states for which this is the same are gone on from once.
    """
    end = log.states[-1]
    build(log.root, end)
    expected = result()
    groups: dict[object, list[Tree]] = {}
    for tree in (*log.states, *(torn for _, torn in log.torn)):
        groups.setdefault(key(tree), []).append(tree)
    figures = Figures(len(log.states), len(log.torn), len(groups))
    asked: set[object] = set()
    trained: set[object] = set()
    for alike in reversed(groups.values()):  # of like states the last has the least to do
        # the first of a kind, the last, and one that is torn in between
        for tree in {id(t): t for t in (alike[0], alike[-1], alike[len(alike) // 2])}.values():
            _ask(log.root, tree, asks, figures, asked)
        tree = alike[-1]
        if only(tree) in trained:
            continue
        trained.add(only(tree))
        figures.trained += 1
        last = _go_on(log.root, tree, again, figures)
        told = f"{last.error} after {sorted(outline(tree))}"
        assert result() == expected, told
        if last.code == 0:
            left = _kept(read(log.root)) ^ _kept(end)
            assert not left, f"{sorted(left)}: {told}"
    return figures


def _ask(root: Path, tree: Tree, asks: Sequence[Ask], figures: Figures, asked: set[object]) -> None:
    due = []
    for ask in asks:
        part = frozenset((p, c) for p, c in tree.items() if p.startswith(ask.of))
        if (ask.words[0], part) not in asked:
            asked.add((ask.words[0], part))
            due.append(ask)
    if not due:
        return
    build(root, tree)
    with _unread(root, tree):
        for ask in due:
            got = answer(ask.words)
            figures.answers[f"{ask.words[0]}: {got.code}"] += 1
            assert ask.may(tree, got), (ask.words, got, outline(tree))
    assert read(root) == tree, f"{[ask.words for ask in due]} changed what they read"


def _go_on(root: Path, tree: Tree, again: Sequence[Sequence[str]], figures: Figures) -> Answer:
    """Go on from a state; return the last answer."""
    build(root, tree)
    for words in again:
        with _unread(root, tree), pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "fsync", lambda _: None)
            got = answer(words)
        figures.answers[f"{words[0]} again: {got.code}"] += 1
        assert got.code in {0, 2}, (words, got, outline(tree))
        if got.code == 0:
            break
        assert lasting(read(root)) == lasting(tree), f"{words} was refused and changed something"
    return got


@contextmanager
def _unread(root: Path, tree: Tree) -> Iterator[None]:
    """See to it that no leftover is read: all that matters of one is that it is there."""
    leftovers = frozenset(place for p in tree if (place := _leftover(p)))
    ear = _listening()
    ear.unread, ear.read = (root, leftovers), set()
    try:
        yield
    finally:
        ear.unread = None
    assert not ear.read, f"leftovers were read: {ear.read}"


def _die(kind: str, number: int) -> None:
    """Have this process killed before the NUMBER-th flush of such a file or directory."""
    sync, left = os.fsync, [number]

    def fsync(descriptor: int) -> None:
        left[0] -= kind in str(Path(f"/proc/self/fd/{descriptor}").readlink())
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        sync(descriptor)

    os.fsync = fsync


if __name__ == "__main__":
    blank.install()
    _die(sys.argv[1], int(sys.argv[2]))
    sys.argv[1:3] = []
    main()
