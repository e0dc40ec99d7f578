"""`tests.replay` hears of every operation, and refuses those that a power cut would undo."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from sora_cli.core.atomic import (
    new_directory,
    new_file,
    remove_directory,
    remove_file,
    tidy,
    write_text_atomic,
)
from tests.replay import build, key, read, recorded, shape


def _run(folder: Path) -> None:
    """Write, replace and remove by all functions of core/atomic."""
    write_text_atomic(folder / "report.json", "{}")
    for content in ("old", "new"):
        with new_directory(folder / "d", force=True) as temporary:
            (temporary / "f").write_text(content)
    with new_file(folder / "g") as file:
        file.write_text("g")
    remove_directory(folder / "d")
    remove_file(folder / "g")
    write_text_atomic(folder / "report.json", "{1}")


@pytest.mark.parametrize("exchange", [True, False])
def test_every_state_has_the_old_or_the_new(tmp_path: Path, exchange: bool) -> None:
    with recorded(tmp_path, exchange=exchange) as log:
        _run(tmp_path)
    assert {o.kind for o in log.operations} >= {"open", "sync", "rename", "remove", "mkdir"}
    assert ("exchange" in {o.kind for o in log.operations}) == exchange
    states = [*log.states, *(tree for _, tree in log.torn)]
    assert {tree.get("report.json") for tree in states} == {None, b"{}", b"{1}"}
    assert {tree.get("d/f") for tree in states} == {None, b"old", b"new"}
    assert {tree.get("g") for tree in states} == {None, b"g"}
    torn = {c for _, tree in log.torn for p, c in tree.items() if ".report.json" in p}
    assert torn >= {b"", b"{", b"{1"}
    assert log.states[-1].keys() == {"report.json"}
    for tree in states:  # at no moment there is neither
        build(tmp_path, tree)
        assert read(tmp_path) == tree
        tidy(tmp_path)
        found = read(tmp_path)
        assert all("partial" not in path and "replaced" not in path for path in found)
        assert {p: found[p] for p in tree if "." not in p[:1]}.items() <= found.items()
        if any(".d." in path and path.endswith(".replaced") for path in tree):
            assert found["d/f"] in {b"old", b"new"}


def test_leftovers_of_one_name_are_of_one_kind(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with recorded(tmp_path) as log:
        write_text_atomic(tmp_path / "a" / "b", "b" * 9)
    assert len({key(tree) for tree in log.states}) == 3  # none, left over, written
    assert len({shape(tree) for tree in log.states}) == 3


def _renamed_early(folder: Path) -> None:
    (folder / ".f.01234567.partial").write_text("f")
    (folder / ".f.01234567.partial").replace(folder / "f")


def _removed_early(folder: Path) -> None:
    file = folder / ".f.01234567.partial"
    with file.open("w") as stream:
        os.fsync(stream.fileno())
    file.replace(folder / "f")
    (folder / "old").unlink()


def _unheard(folder: Path) -> None:
    os.close(os.open(folder / ".lock", os.O_CREAT | os.O_WRONLY))
    # as a library in C or Rust would: no hook hears of it
    os.system(f"rm {folder}/old")


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda folder: (folder / "old").write_text("x"), "old is written where it stands"),
        (_renamed_early, "f is in place before .f.01234567.partial is on the disk"),
        (_removed_early, "old: remove before / is on the disk"),
        (_unheard, "old has changed unheard of"),
    ],
)
def test_what_is_refused(tmp_path: Path, fault: Callable[[Path], object], message: str) -> None:
    (tmp_path / "old").write_text("old")
    with pytest.raises(AssertionError, match=message), recorded(tmp_path):
        fault(tmp_path)


def test_a_directory_in_the_hands_of_the_system_is_heard_of(tmp_path: Path) -> None:
    """Paths that are relative to an open directory, as `rmtree` has them."""
    (tmp_path / "d" / "e").mkdir(parents=True)
    (tmp_path / "d" / "e" / "f").write_text("f")
    with recorded(tmp_path) as log:
        shutil.rmtree(tmp_path / "d")
    assert [(o.kind, o.path) for o in log.operations] == [
        ("remove", "d/e/f"), ("rmdir", "d/e"), ("rmdir", "d"),
    ]  # fmt: skip
