"""The rows of a certificate, loaded and dealt again as its run did."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from sora_cli.data.rows import Rows
from sora_cli.data.source import MissingDataError
from sora_cli.model.base import Base
from sora_cli.recipe.recipe import Recipe
from sora_cli.report import read_report
from sora_cli.run.encode import encode as encode_rows
from sora_cli.run.prepare import load_task
from sora_cli.search.certificate import Certificate, directory_of
from sora_cli.search.halves import HALVES, held_data
from sora_cli.search.parts import EncodedPart, Held, Part
from sora_cli.search.row_set import REFIT, SCREENING, TEST, TRAIN, RowSet, half_name
from sora_cli.search.rows import (
    cross_fit_rows,
    deciding_parts,
    deciding_rows,
    row_sets,
    sets_of_halves,
)
from sora_cli.tasks.base import Task

TEST_ROWS, WITHOUT_LABELS = "", " "
"""Keys of the test rows, with and without labels, beside the reported splits, which have names."""


class RowsAgain:
    """The test rows of some adapters, encoded for each model in turn.

    Attributes:
        sets: number and digest of the rows, once they are encoded.
    """

    def __init__(self, task: Task, encode: Callable[[Base], Mapping[str, EncodedPart]]) -> None:
        self._task, self._encode = task, encode
        self._parts: Mapping[str, EncodedPart] | None = None
        self.sets: dict[str, RowSet] = {}

    def on(self, base: Base) -> Mapping[str, EncodedPart]:
        """Return the rows encoded for a model, by part; those that test are found once."""
        if self._parts is None:
            self._parts = self._encode(base)
            return self._parts
        return {name: part.on(self._task, base) for name, part in self._parts.items()}


def rows_again(
    run: Path, recipe: Recipe, certificate: Certificate
) -> tuple[Task, dict[str, RowSet], list[RowsAgain], dict[str, Held]]:
    """Load all rows.

    Returns:
        The task; the row sets of all parts; the test rows, of cross-fitting of each half's
        adapters; and the reported rows by split.
    """
    screening, test = (certificate.rows[name] for name in (SCREENING, TEST))
    if certificate.halves:
        task, rows = _load(recipe)
        parts = cross_fit_rows(recipe, task, screening.rows)
        sets = sets_of_halves(rows, parts)
        tests = [_of_half(task, parts[half_name(3 - half)]) for half in HALVES]
        return task, sets, tests, _reported(rows)
    more, seed = {}, recipe.auto.seed if recipe.auto is not None else 0
    if certificate.final is not None:
        # its recipe trains on all rows; these are of the tested one
        more = {REFIT: row_sets(_load(recipe)[1], {})[TRAIN]}
        full = read_report(run / directory_of(None))
        known = {} if full is None else full.recipe.get("data", {})
        planned = known.get("selection_rows", screening.rows + test.rows)
        held_out = recipe.data.model_copy(update=held_data(planned, seed))
        recipe = recipe.model_copy(update={"data": held_out})
    task, rows = _load(recipe)
    with _moved("auto.unlabelled=FILE"):
        held = deciding_rows(
            recipe, task, rows.train, screening.rows, test.held or test.rows, screening.inputs
        )

    def encode(base: Base) -> Mapping[str, EncodedPart]:
        train = encode_rows(task, base, rows.train, rows.origin(rows.train), training=True)
        found = deciding_parts(recipe, task, base, rows, train, held)
        of_search.sets = {**found.sets, **more}
        return dict(zip((TEST_ROWS, WITHOUT_LABELS), found.tests, strict=False))

    of_search = RowsAgain(task, encode)
    return task, row_sets(rows, held) | more, [of_search], _reported(rows)


def _of_half(task: Task, part: Part) -> RowsAgain:
    return RowsAgain(task, lambda base: {TEST_ROWS: EncodedPart(part, part.encoded(task, base))})


def _reported(rows: Rows) -> dict[str, Held]:
    return {split: Part(part, rows.origin(part)) for split, part in rows.report.items()}


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
