"""Write the proposed recipe, for `sora init` and for `sora auto` with data instead of a recipe."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sora_cli.core.atomic import write_text_atomic
from sora_cli.core.errors import SoraError
from sora_cli.core.processes import world_size
from sora_cli.core.shell import quote
from sora_cli.core.timing import importing

if TYPE_CHECKING:
    from sora_cli.propose.proposal import Proposal


def recipe_name(source: str) -> Path:
    """Return the recipe's file name for some data: reviews.yaml for data/reviews.csv."""
    stem = Path(os.path.realpath(source.rpartition("://")[2])).stem or "recipe"
    return Path(f"{stem}.yaml")


def write_proposal(
    source: str,
    file: Path,
    tell: Callable[[str], None],
    *,
    model: str | None,
    task: str | None,
    overrides: Sequence[str],
    preview: int | None,
    command: str | None,
) -> Proposal:
    """Propose a recipe for data, print the proposal, and write the file.

    Args:
        tell: prints a text.
        preview: number of rows to show; None: two.
    """
    with importing():
        from tqdm import tqdm

        from sora_cli.propose.lines import proposal_lines
        from sora_cli.propose.proposal import STEPS, propose
        from sora_cli.run.preview import ROWS
    rows = ROWS if preview is None else preview
    with tqdm(desc=f"reading {source}", total=STEPS + 1, delay=1, leave=False) as bar:
        proposal = propose(
            source,
            file,
            model=model,
            task=task,
            overrides=overrides,
            command=command,
            step=bar.update,
        )
        lines = list(proposal_lines(proposal, rows=rows))
        bar.update()
    tell("\n".join(lines))
    write_text_atomic(file, proposal.text)
    return proposal


def recipe_for(
    data: str,
    overrides: Sequence[str],
    tell: Callable[[str], None],
    *,
    model: str | None,
    task: str | None,
    dry_run: bool,
    preview: int | None = None,
) -> str:
    """Return the file name of the data's recipe; write the recipe if the file does not exist.

    A dry run and several processes write no recipe: then a missing file is an error.

    Args:
        tell: prints a text.
    """
    file = recipe_name(data)
    if file.is_file():
        tell(f"{file} exists and is used as the recipe; to write it anew: sora init {quote(data)}")
        return str(file)
    command = f"sora init {quote(data)}"
    if dry_run or world_size() > 1:
        what = "a dry run writes no recipe" if dry_run else "several processes write no recipe"
        raise SoraError(f"{what}, and there is no {file}", hint=command)
    words = [word for word in overrides if not word.startswith("auto.")]  # of this command alone
    proposal = write_proposal(
        data,
        file,
        tell,
        model=model,
        task=task,
        overrides=words,
        preview=preview,
        command=command,
    )
    for note in proposal.rows.notes:
        tell(f"note: {note}")
    tell(f"written: {file}\n")
    return str(file)
