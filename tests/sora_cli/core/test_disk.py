"""Disks that are full, cannot be written to, or lose their files: one clear error, nothing lost.

Real file systems: a tmpfs of a few pages, mounted in the test's own name space.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from sora_cli.app import run
from sora_cli.model.files import CARD
from sora_cli.report import read_report
from sora_cli.train.callback import MethodCallback
from tests import warm
from tests.helpers_models import tiny_bert
from tests.helpers_runs import files_of, train, write_recipe
from tests.matrix import rest_is_long
from tests.present import present
from tests.shared_files import ROOT

PROGRAM = """
import ctypes, os, subprocess, sys
from pathlib import Path
place, size, fill, back, before, *words = sys.argv[1:]
user, group = os.getuid(), os.getgid()
if ctypes.CDLL(None, use_errno=True).unshare(0x10000000 | 0x00020000):  # CLONE_NEWUSER, CLONE_NEWNS
    raise OSError(ctypes.get_errno(), "unshare")
Path("/proc/self/setgroups").write_text("deny")
Path("/proc/self/uid_map").write_text(f"0 {user} 1")
Path("/proc/self/gid_map").write_text(f"0 {group} 1")
call = lambda text: subprocess.run(["bash", "-ec", text], check=True)
call(f"mount --make-rprivate / && mount -t tmpfs -o size={size} none {place}")
call(f"cp -r {fill}/. {place}")
call(before)
from sora_cli.app import main
sys.argv[1:] = words
try:
    main()
finally:
    call(f"cp -r {place}/. {back}")
"""
"""A fork of `tests.warm` that has a name space of mounts, and a small disk in it, to itself."""


def _can_mount() -> bool:
    probe = ["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"]
    return shutil.which("unshare") is not None and not subprocess.run(
        probe, check=False, capture_output=True
    ).returncode  # fmt: skip


needs_mount = pytest.mark.skipif(not _can_mount(), reason="no name space to mount in")


def _on_tmpfs(
    tmp_path: Path, words: list[str], *, size: str, before: str = "", fill: Path | None = None
) -> tuple[int, list[str], dict[str, bytes]]:
    """A command whose output is on a small disk: exit code, what it said, what the disk holds."""
    place, back, empty = (tmp_path / name for name in ("disk", "back", "empty"))
    for folder in (place, back, empty):
        folder.mkdir()
    facts = [place, size, fill or empty, back, before or "true"]
    done = subprocess.run(
        [warm.python(), "-c", PROGRAM, *map(str, facts), *words],
        env={**warm.ENVIRONMENT, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stderr.splitlines(), files_of(back)


def _errors(lines: list[str]) -> list[str]:
    assert not [line for line in lines if "Traceback" in line or "internal error" in line]
    first = next(i for i, line in enumerate(lines) if "error: " in line)
    assert len(lines) - first <= 3
    return lines[first:]


@needs_mount
@pytest.mark.parametrize(
    ("size", "limit"),
    rest_is_long([("64k", 1), ("16k", 1)]),  # the report fits or not; no checkpoint does
)
def test_full_disk(tmp_path: Path, size: str, limit: int) -> None:
    recipe = write_recipe(tmp_path, tiny_bert(num_labels=2))
    place = tmp_path / "disk"
    code, lines, held = _on_tmpfs(
        tmp_path, ["train", str(recipe), f"output.dir={place}/out", "--no-verify"], size=size
    )
    assert code == 2, lines
    error = _errors(lines)
    assert "No space left" in error[0] or "no space left" in error[0]
    assert str(place) in error[0]
    assert len(error) >= limit
    assert set(held) <= {"out/report.json", "out/history.json"}  # whole or not there


@needs_mount
@pytest.mark.parametrize("spare", ["0", "40k"])  # for the lock and the report, or not even that
def test_full_disk_leaves_what_was_there(tmp_path: Path, spare: str) -> None:
    """Trained again over a finished run: the adapter is the earlier one, all of it."""
    recipe = write_recipe(tmp_path, tiny_bert(num_labels=2))
    train(recipe)
    (tmp_path / "fill").mkdir()
    shutil.copytree(tmp_path / "out", tmp_path / "fill" / "out")
    before = files_of(tmp_path / "out" / "adapter")
    used = sum(len(content) for content in files_of(tmp_path / "fill").values())
    place = tmp_path / "disk"
    words = ["train", str(recipe), f"output.dir={place}/out", "--force", "--no-verify"]
    free = f"head -c 10M /dev/zero > {place}/ballast || true; truncate -s -{spare} {place}/ballast"
    code, lines, held = _on_tmpfs(
        tmp_path, words, size=f"{2 * used // 1024 + 1000}k", before=free, fill=tmp_path / "fill"
    )
    assert code == 2, lines
    _errors(lines)
    assert {
        n.removeprefix("out/adapter/"): c for n, c in held.items() if "/adapter/" in n
    } == before
    assert not [name for name in held if "partial" in name]


@needs_mount
@pytest.mark.parametrize(("command", "size"), rest_is_long(
    [("merge", "16k"), ("merge", "100k"), ("export", "8k"), ("prune", "8k"), ("extract", "8k")]
))  # fmt: skip
def test_results_on_a_full_disk(tmp_path: Path, command: str, size: str) -> None:
    """The disk is too small for the weights, or for no more than them: nothing is left there."""
    train(write_recipe(tmp_path, tiny_bert(num_labels=2)))
    words = [str(tmp_path / "out"), "-o", f"{tmp_path}/disk/new"]
    if command == "extract":
        assert run(["merge", str(tmp_path / "out"), "-o", str(tmp_path / "merged")]) == 0
        words = [
            str(tmp_path / "merged"),
            *words[1:],
            "--base",
            str(tmp_path / "base"),
            "--rank",
            "4",
        ]
    code, lines, held = _on_tmpfs(tmp_path, [command, *words], size=size)
    assert code == 2, lines
    error = _errors(lines)
    assert re.search("no space left|of disk, and .* are free", error[0], re.IGNORECASE)
    assert str(tmp_path / "disk") in " ".join(error)
    assert not held


@needs_mount
@pytest.mark.parametrize("command", ["train", "export", "prune", "merge"])
def test_read_only_disk(tmp_path: Path, command: str) -> None:
    recipe = write_recipe(tmp_path, tiny_bert(num_labels=2))
    place = tmp_path / "disk"
    words = ["train", str(recipe), f"output.dir={place}/out"]
    if command != "train":
        train(recipe)
        words = [command, str(tmp_path / "out"), "-o", f"{place}/{command}"]
    code, lines, held = _on_tmpfs(tmp_path, words, size="1m", before=f"mount -o remount,ro {place}")
    assert code == 2, lines
    error = _errors(lines)
    assert "read-only file system" in error[0].lower()
    assert str(place) in error[0]
    assert not held


def _lose(monkeypatch: pytest.MonkeyPatch, *folders: Path) -> None:
    """Somebody deletes directories in the middle of the training."""
    inner, left = MethodCallback.on_optimizer_step, list(folders)

    def on_optimizer_step(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        inner(self, args, state, control, **kwargs)
        while state.global_step == 8 and left:
            shutil.rmtree(left.pop())

    monkeypatch.setattr(MethodCallback, "on_optimizer_step", on_optimizer_step)


def test_inputs_deleted_on_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rows and weights are in memory: the run ends well; only its check has no base any more."""
    recipe = write_recipe(tmp_path, tiny_bert(num_labels=2))
    expected = train(recipe, f"output.dir={tmp_path}/whole/out")  # its card has the name
    _lose(monkeypatch, tmp_path / "base")
    (tmp_path / "train.jsonl").unlink()
    (tmp_path / "train.jsonl").touch()
    shutil.copytree(tmp_path / "whole", tmp_path / "kept")
    assert run(["train", str(recipe)]) == 2  # no rows
    assert not (tmp_path / "out").exists()
    write_recipe(tmp_path, tiny_bert(num_labels=2))
    code = run(["train", str(recipe)])
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert code in (0, 2)
    report = present(read_report(tmp_path / "out"))
    assert report.status == "completed"
    assert report.metrics == expected.metrics
    written, whole = (files_of(tmp_path / name / "adapter") for name in ("out", "whole/out"))
    assert written.keys() == whole.keys()
    written.pop(CARD)  # without its base a card knows less of who can load it
    assert written.items() <= whole.items()


def test_output_deleted_on_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints and results after that are written all the same."""
    recipe = write_recipe(tmp_path, tiny_bert(num_labels=2))
    _lose(monkeypatch, tmp_path / "out")
    report = train(recipe)
    assert report.status == "completed"
    assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").is_file()
