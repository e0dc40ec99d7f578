"""A recipe for data that has none, written for `sora init` and for `sora auto --data`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from sora_cli.core.atomic import write_text_atomic
from sora_cli.core.console import say_notes
from sora_cli.core.timing import importing


def recipe_name(source: str) -> Path:
    """Return what a recipe is called after its data: reviews.yaml for data/reviews.csv."""
    stem = Path(source.rpartition("://")[2]).resolve().stem or "recipe"
    return Path(f"{stem}.yaml")


def write_proposal(
    source: str,
    file: Path,
    tell: Callable[[str], None],
    *,
    model: str | None,
    task: str | None,
    overrides: Sequence[str],
    preview: int,
    command: str | None,
) -> None:
    """Write a recipe for data, and tell what was understood.

    Args:
        tell: prints it.

    Raises:
        SoraError: see `propose`.
    """
    with importing():
        from sora_cli.run.preview import proposal_lines
        from sora_cli.run.propose.proposal import propose
    proposal = propose(source, file, model=model, task=task, overrides=overrides, command=command)
    tell("\n".join(proposal_lines(proposal, rows=preview)))
    write_text_atomic(file, proposal.text)
    say_notes(proposal.rows.notes)
