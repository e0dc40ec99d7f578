"""Files and directories appear complete or not at all."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sora_cli.core import atomic
from sora_cli.core.atomic import check_replaceable, new_directory, tidy, write_text_atomic
from sora_cli.core.errors import SoraError


def test_text_is_replaced(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "a.txt"
    write_text_atomic(file, "one")
    write_text_atomic(file, "zwei ü")
    assert file.read_text(encoding="utf-8") == "zwei ü"
    assert [p.name for p in file.parent.iterdir()] == ["a.txt"]


def test_directory_appears_at_the_end_with_the_usual_rights(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    with new_directory(tmp_path / "new") as temporary:
        (temporary / "f").write_text("x")
        assert not (tmp_path / "new").exists()
    assert (tmp_path / "new" / "f").read_text() == "x"
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert len(list(tmp_path.iterdir())) == 2


def _replace_and_fail(path: Path, error: type[BaseException]) -> None:
    with new_directory(path, force=True) as temporary:
        (temporary / "f").write_text("new")
        raise error


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_failure_leaves_what_was_there(tmp_path: Path, error: type[BaseException]) -> None:
    old = tmp_path / "d"
    old.mkdir()
    (old / "f").write_text("old")
    with pytest.raises(error):
        _replace_and_fail(old, error)
    assert (old / "f").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["d"]


def test_failed_rename_puts_the_old_directory_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tmp_path / "d"
    old.mkdir()
    (old / "f").write_text("old")
    rename = Path.rename

    def fail_once(self: Path, target: Path) -> Path:
        if target == old and (self / "f").read_text() == "new":
            raise OSError("no")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_once)
    monkeypatch.setattr(atomic, "_exchange", lambda a, b: False)  # noqa: ARG005
    with pytest.raises(OSError, match="no"), new_directory(old, force=True) as temporary:
        (temporary / "f").write_text("new")
    assert (old / "f").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["d"]


def test_what_may_not_be_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = tmp_path / "d" / "inside"
    inside.mkdir(parents=True)
    (tmp_path / "file").write_text("x")
    check_replaceable(tmp_path / "free")
    check_replaceable(inside, force=True, markers=("m",))  # empty: nothing to lose
    for path, force, message in (
        (tmp_path / "d", False, "exists already"),
        (tmp_path / "file", True, "not a directory"),
        (tmp_path / "d", True, "holds no m"),
    ):
        with pytest.raises(SoraError, match=message):
            check_replaceable(path, force=force, markers=("m",))
    monkeypatch.chdir(inside)
    with pytest.raises(SoraError, match="current directory"):
        check_replaceable(tmp_path / "d", force=True)


def test_others_may_read_what_the_umask_lets_them(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        with new_directory(tmp_path / "d") as temporary:
            (temporary / "sub").mkdir()
            save_file({"a": torch.zeros(1)}, temporary / "sub" / "a.safetensors")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "d" / "sub" / "a.safetensors").stat().st_mode) == 0o644


def test_directories_change_places_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At no moment is there none: nothing is renamed away first."""
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "f").write_text("old")
    monkeypatch.setattr(Path, "rename", lambda *_: pytest.fail("renamed"))
    with new_directory(tmp_path / "d", force=True) as temporary:
        (temporary / "f").write_text("new")
    assert (tmp_path / "d" / "f").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["d"]


def test_what_killed_processes_leave_is_tidied_up(tmp_path: Path) -> None:
    for name in (".report.json.0123abcd.partial", "report.json"):
        (tmp_path / name).write_text("x")
    for name in (
        ".adapter.0123abcd.partial",
        ".gone.0123abcd.replaced",
        ".d.0123abcd.replaced",
        "d",
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "f").write_text(name)
    tidy(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d", "gone", "report.json"]
    assert (tmp_path / "d" / "f").read_text() == "d"
    assert (tmp_path / "gone" / "f").read_text() == ".gone.0123abcd.replaced"
