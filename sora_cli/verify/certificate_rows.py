"""The rows of a certificate, loaded and dealt again as its run did."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sora_cli.data.rows import Rows
from sora_cli.data.source import MissingDataError
from sora_cli.model.base import Base
from sora_cli.recipe.recipe import Recipe
from sora_cli.run.encode import encode
from sora_cli.run.prepare import load_task
from sora_cli.search.certificate import Certificate
from sora_cli.search.parts import EncodedPart, Held, Part
from sora_cli.search.row_set import SCREENING, TEST, RowSet
from sora_cli.search.rows import deciding_parts, deciding_rows, row_sets
from sora_cli.tasks.base import Task


class RowsAgain:
    """The rows of a certificate, loaded and dealt again.

    Attributes:
        sets: number and digest of the rows; once they are encoded, of those that test.
        reported: the reported rows by split.
    """

    def __init__(self, recipe: Recipe, certificate: Certificate) -> None:
        screening, test = (certificate.rows[name] for name in (SCREENING, TEST))
        self._recipe = recipe
        self.task, self._rows = _load(recipe)
        with _moved("auto.unlabelled=FILE"):
            self._held = deciding_rows(
                recipe,
                self.task,
                self._rows.train,
                screening.rows,
                test.held or test.rows,
                screening.inputs,
            )
        self.sets: dict[str, RowSet] = row_sets(self._rows, self._held)
        self.reported: dict[str, Held] = {
            split: Part(part, self._rows.origin(part)) for split, part in self._rows.report.items()
        }
        self._test: EncodedPart | None = None

    def test_on(self, base: Base) -> EncodedPart:
        """Return the test rows encoded for a model; those that test are found once."""
        if self._test is not None:
            return self._test.on(self.task, base)
        rows = self._rows
        origin = rows.origin(rows.train)
        train = encode(self.task, base, rows.train, origin, training=True)
        found = deciding_parts(self._recipe, self.task, base, rows, train, self._held)
        self._test, self.sets = found.test, found.sets
        return found.test


def _load(recipe: Recipe) -> tuple[Task, Rows]:
    """Load the rows; if they are not found, name the overrides that say where they are."""
    with _moved("data.files.train=FILE, or data.path=DIR"):
        return load_task(recipe)


@contextmanager
def _moved(override: str) -> Iterator[None]:
    """Name the override for rows that have moved, if rows are not found inside the `with` block."""
    try:
        yield
    except MissingDataError as error:
        error.hint = f"say where it is now: {override}"
        raise
