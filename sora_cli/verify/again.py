"""The evidence of a certificate computed again, from the recipe and the stored runs alone.

Nothing is taken from the certificate but the command that made it and the place of what is outside
its directory. Of `sora auto` every run is stored, and `auto.json` says which sizes were named, and
how many rows screen and test. Of `sora prune` and `sora extract` the sizes are cut again from the
reference, and the written adapter is scored beside them; of `sora prune --heal` each size is a run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from sora_cli.core.errors import SoraError
from sora_cli.core.exit_codes import NO_VERDICT
from sora_cli.data.source import MissingDataError
from sora_cli.recipe.load import LoadedRecipe, load_stored
from sora_cli.recipe.reading import CERTIFICATE, load_read
from sora_cli.run.prepare import load_task
from sora_cli.search.evidence import Evidence
from sora_cli.tasks.base import Task
from sora_cli.tasks.row_scores import RowScores


class NotAgainError(SoraError):
    """A certificate that cannot be computed again, which says nothing against it."""

    exit_code = NO_VERDICT


@dataclass
class Again:
    """What was computed again.

    Attributes:
        evidence: as it follows from the files; None: they are other files, so nothing was scored.
        scores: of the reference on the test rows.
        reported: of the reference by reported split.
        named: `max_params` of the sizes to be tested, in this order; None: the maker orders them.
        differs: what is not as the certificate says, a sentence each.
    """

    evidence: Evidence | None = None
    scores: RowScores | None = None
    reported: Mapping[str, RowScores] = field(default_factory=dict)
    named: Sequence[int] | None = None
    differs: list[str] = field(default_factory=list)


def loaded_again(
    values: Mapping[str, Any], file: Path, name: str, overrides: Sequence[str]
) -> LoadedRecipe:
    """Load a stored recipe, with the present place of its data or model."""
    loaded = load_read(partial(load_stored, values, file, name), overrides, CERTIFICATE)
    return replace(loaded, recipe=loaded.recipe.to_score())


def rows_again(recipe: Any) -> tuple[Task, Any]:
    """Load the rows; if they are not found, name the overrides that say where they are."""
    with if_moved("data.files.train=FILE, or data.path=DIR"):
        return load_task(recipe)


@contextmanager
def if_moved(override: str) -> Iterator[None]:
    """Name the override for rows that have moved, if rows are not found inside the `with` block."""
    try:
        yield
    except MissingDataError as error:
        error.hint = f"say where it is now: {override}"
        raise
