"""What a command does in a directory that holds earlier work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sora_cli.core.errors import SoraError
from sora_cli.run.opening import Opening, Work, open_work, resumable

RECIPE = {"training": {"epochs": 3.0}}
OTHER = {"training": {"epochs": 4.0}}
OPEN = Work("run", False, RECIPE, left="a run with checkpoints", usage="sora inspect x")
DONE = Work("run", True, RECIPE, left="a run with checkpoints")


def _open(found: Work | None, recipe: Any = RECIPE, **flags: Any) -> Opening:
    return open_work(Path("x"), found, recipe, **({"force": False, "resume": False} | flags))


@pytest.mark.parametrize("resume", [True, False, None])
def test_an_empty_directory_is_new(resume: bool | None) -> None:
    assert _open(None, resume=resume) is Opening.NEW


@pytest.mark.parametrize("found", [OPEN, DONE])
@pytest.mark.parametrize("resume", [False, None])
@pytest.mark.parametrize("recipe", [RECIPE, OTHER])
def test_force_starts_over(found: Work, resume: bool | None, recipe: Any) -> None:
    assert _open(found, recipe, force=True, resume=resume) is Opening.NEW


@pytest.mark.parametrize("resume", [True, None])
def test_unfinished_work_is_continued(resume: bool | None) -> None:
    assert _open(OPEN, resume=resume) is Opening.CONTINUE


def test_of_finished_work_nothing_is_left_to_resume() -> None:
    assert _open(DONE, resume=True) is Opening.NOTHING


def test_a_run_that_would_lose_nothing_starts_again() -> None:
    assert _open(Work("run", False, RECIPE)) is Opening.NEW


@pytest.mark.parametrize(
    ("found", "flags", "what", "hint"),
    [
        (OPEN, {}, "'x' holds a run with checkpoints", "resume it: --resume; start over: --force"),
        (DONE, {}, "'x' holds a finished run", "train again with --force, or train elsewhere"),
        (Work("path", True, RECIPE, usage="sora pick x"), {"resume": None},
         "'x' holds a finished path", "sora pick x; or train again with --force"),
        (OPEN, {"resume": True, "recipe": OTHER},
         "the run in 'x' was started with another recipe: training.epochs was 3.0, is now 4.0",
         "resume it with its own recipe"),
        (OPEN, {"resume": None, "recipe": OTHER},
         "the run in 'x' was started with another recipe: training.epochs was 3.0, is now 4.0",
         "or delete that run: --force"),
        (OPEN, {"resume": True, "force": True, "recipe": OTHER},
         "the run in 'x' was started with another recipe: training.epochs was 3.0, is now 4.0",
         "resume it with its own recipe"),
    ],
)  # fmt: skip
def test_refused(found: Work, flags: dict[str, Any], what: str, hint: str) -> None:
    with pytest.raises(SoraError) as caught:
        _open(found, **flags)
    assert caught.value.what == what
    assert hint in str(caught.value.hint)


def test_force_accepts_safe_changes_of_a_run_that_is_resumed() -> None:
    now = {"training": {"epochs": 3.0, "logging_steps": 7}}
    before = Work("run", False, {"training": {"epochs": 3.0, "logging_steps": 5}})
    assert _open(before, now, force=True, resume=True) is Opening.CONTINUE
    with pytest.raises(SoraError, match="another recipe"):
        _open(before, now, resume=True)


@pytest.mark.parametrize(("force", "without"), [(False, ""), (True, ", without --force,")])
def test_the_command_that_continues_has_no_force(
    capsys: pytest.CaptureFixture[str], force: bool, without: str
) -> None:
    with pytest.raises(KeyboardInterrupt), resumable(lambda: "1 of 2 is done", force=force):
        raise KeyboardInterrupt
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == f"1 of 2 is done; the same command{without} continues from there"
