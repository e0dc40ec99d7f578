"""Decide about a directory with earlier work: refuse it, continue the work, or start over.

`sora train` and healing continue only with `--resume`. A path and `sora auto` continue without a
flag, as their records tell how far they got.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from typing import Any

from sora_cli.core.console import say
from sora_cli.core.errors import SoraError
from sora_cli.train.checkpoint.resume import check_same

ELSEWHERE = "train elsewhere: output.dir=DIR"
"""The advice if a directory cannot be used."""


class Opening(Enum):
    """The decision about an output directory."""

    NEW = auto()
    """Start anew: the directory is free, or `--force` was given."""
    CONTINUE = auto()
    """Continue the earlier work."""
    NOTHING = auto()
    """The earlier work is finished: nothing is left to do."""


@dataclass(frozen=True)
class Work:
    """Earlier work in a directory.

    Attributes:
        kind: its name in messages, such as "path".
        recipe: the resolved recipe that it was started with; None: any recipe may continue it.
        left: description, with its article, of unfinished work that a new start would lose; empty:
            there is none.
        usage: the command that uses finished work.
    """

    kind: str
    finished: bool
    recipe: Mapping[str, Any] | None = None
    left: str = ""
    usage: str = ""


def open_work(
    output: Path,
    found: Work | None,
    recipe: Mapping[str, Any],
    *,
    force: bool,
    resume: bool | None,
    elsewhere: str = ELSEWHERE,
) -> Opening:
    """Decide between a new start, earlier work to continue, and finished work with nothing left.

    Refuses finished work, work of another recipe, and a new start that would lose work.

    Args:
        found: the earlier work; None: there is none.
        recipe: the command's resolved recipe.
        force: start over; together with `resume`: accept safe changes of the recipe.
        resume: continue; None: this command continues without a flag.
        elsewhere: advice on choosing another directory, for errors.
    """
    if found is None or (force and not resume):
        return Opening.NEW
    if resume is not False:
        if found.recipe is not None:
            check_same(
                found.recipe, recipe, output, force=force, kind=found.kind, unasked=resume is None
            )
        if not found.finished:
            return Opening.CONTINUE
        if resume:
            return Opening.NOTHING
    if found.finished:
        again = (
            f"{found.usage}; or train again with --force"
            if found.usage
            else f"train again with --force, or {elsewhere}"
        )
        raise SoraError(f"'{output}' holds a finished {found.kind}", hint=again)
    if found.left:
        raise SoraError(
            f"'{output}' holds {found.left}",
            hint=f"resume it: --resume; start over: --force; or {elsewhere}",
        )
    return Opening.NEW


@contextmanager
def resumable(done: Callable[[], str], *, force: bool) -> Iterator[None]:
    """If the work stops early, tell the user how far it got and which command continues it.

    Args:
        done: describes the finished part of the work.
        force: the command was given `--force`.
    """
    try:
        yield
    except BaseException:
        say(f"\n{done()}; {continued_by(force=force)}")
        raise


def continued_by(*, force: bool) -> str:
    """Name the command that continues work; with `--force` it would delete that work."""
    return f"the same command{', without --force,' if force else ''} continues from there"
