"""The decision about a directory that holds earlier work: refuse it, continue it, or start over.

`sora train` and healing continue where `--resume` asks for it; a path and `sora auto` continue
unasked, as their records tell how far they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from typing import Any

from sora_cli.core.errors import SoraError
from sora_cli.train.checkpoint.resume import check_same

ELSEWHERE = "train elsewhere: output.dir=DIR"
"""The way out where a directory cannot be used."""


class Opening(Enum):
    """The course to take in a directory."""

    NEW = auto()
    """Start: nothing is there, or `--force` starts over."""
    CONTINUE = auto()
    """Go on with the work that is there."""
    NOTHING = auto()
    """All of it is done."""


@dataclass(frozen=True)
class Work:
    """Earlier work in a directory.

    Attributes:
        kind: its name for a person, such as "path".
        finished: whether all of it is done.
        recipe: resolved, with which it was started; None: any goes on with it.
        left: what a new start would lose, with the article; empty: nothing.
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
    """Decide what a command does in its directory.

    Args:
        found: the work that is there.
        recipe: resolved, of the command.
        force: start over; with `resume`, accept changes of the recipe that are safe.
        resume: continue; None: continuing needs no flag.
        elsewhere: how another place is chosen.

    Raises:
        SoraError: the work is finished, of another recipe, or would be lost.
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
