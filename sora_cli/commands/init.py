"""`sora init`: a recipe for data that has none."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from sora_cli.core.atomic import write_text_atomic
from sora_cli.core.console import emit, say, say_notes
from sora_cli.core.errors import SoraError
from sora_cli.core.timing import importing


def init(
    source: str,
    overrides: Sequence[str],
    *,
    output: Path | None,
    model: str | None,
    task: str | None,
    preview: int,
    force: bool,
) -> None:
    """Write a recipe for data, and show what was understood.

    Args:
        source: a file, a directory, builtin://NAME, or a data set's Hub id.
        overrides: values that are given, such as "data.label_column=stars".
        output: the recipe's file; None: called as the data are, in this directory.
        preview: rows that are shown as the model gets them.

    Raises:
        SoraError: see `propose`; a file that is there, without `force`.
    """
    file = output or Path(f"{_stem(source)}.yaml")
    _check_new(file, force=force)
    with importing():
        from sora_cli.run.preview import proposal_lines
        from sora_cli.run.propose.proposal import propose
    proposal = propose(source, file, model=model, task=task, overrides=overrides, command=_typed())
    emit("\n".join(proposal_lines(proposal, rows=preview)))
    write_text_atomic(file, proposal.text)
    say_notes(proposal.rows.notes)
    say(f"\nwritten: {file}")
    say("next:")
    say(f"  sora train {shlex.quote(str(file))} --dry-run")
    say(f"  sora train {shlex.quote(str(file))}")


def _check_new(file: Path, *, force: bool) -> None:
    if file.is_dir():
        raise SoraError(f"'{file}' is a directory", hint=f"-o {file}/recipe.yaml")
    if file.exists() and not force:
        raise SoraError(
            f"'{file}' exists already", hint="--force replaces it; -o OTHER.yaml writes another"
        )
    if file.suffix.lower() not in (".yaml", ".yml"):
        raise SoraError(f"a recipe's name ends in .yaml, unlike '{file}'", hint=f"-o {file}.yaml")


def _stem(source: str) -> str:
    """Return what data are called: "reviews" for data/reviews.csv and for owner/reviews."""
    return Path(source.rpartition("://")[2]).resolve().stem or "recipe"


def _typed() -> str | None:
    """Return the command as it was typed; None where this is no process of its own."""
    return shlex.join(["sora", *sys.argv[1:]]) if sys.argv[1:2] == ["init"] else None
