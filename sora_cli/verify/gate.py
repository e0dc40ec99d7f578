"""Is B no worse than A? A promise about two finished models, tested on the same rows.

B is the only size that is tested, so no correction is needed. Beside the upper bound of the drop
there is a lower one, each with the promise's confidence: B is certified if the upper bound is
within the promise, and shown to be worse if the lower one is above it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from sora_cli.adapter.digest import deciding, result_digest
from sora_cli.adapter.metadata import read_sora_file
from sora_cli.adapter.places import adapter_folder, baseline_folder
from sora_cli.core.console import say_notes
from sora_cli.model.files import SORA_FILE
from sora_cli.recipe.recipe import Recipe
from sora_cli.run.scoring import load_target
from sora_cli.search.asking import Labels
from sora_cli.search.cut import method_told, reference_of, stored_size
from sora_cli.search.evidence import Candidate
from sora_cli.search.finished import Loaded, Model, Planned, asked_outcome
from sora_cli.search.promise import Promise
from sora_cli.search.row_set import TEST
from sora_cli.search.search import Outcome
from sora_cli.search.size import Size
from sora_cli.search.statistic import Bound
from sora_cli.search.statistics import drop_bound, statistic_of
from sora_cli.search.test_rows import TestRows
from sora_cli.tasks.base import Task
from sora_cli.train.trainer import build_scorer

NAME = "A"
"""Name of the reference in sentences."""


@dataclass(frozen=True)
class Side:
    """One of the two models.

    Attributes:
        reference: the user's name for it.
        place: its adapter, delta or model; of a model of the Hub the name.
        base: the base model of an adapter, as the user named it.
    """

    reference: str
    place: Path
    base: str | None = None

    @classmethod
    def of(cls, reference: str, base: str | None = None) -> Side:
        """Find a model by the user's name for it."""
        place = Path(reference).expanduser()
        return cls(reference, adapter_folder(place) or baseline_folder(place) or place, base)

    @property
    def digest(self) -> str:
        """The digest of its files; "": they are not on this disk."""
        return result_digest(self.place) or ""

    @property
    def size(self) -> Size:
        """The size of an adapter; a model has no factors."""
        if adapter_folder(self.place) is None:
            return Size(parameters=0, components=0, largest_rank=0, served=0)
        return stored_size(self.place)

    def model(self, recipe: Recipe, task: Task) -> Model:
        """Return the model, which is loaded when it is scored."""
        on = self.base if adapter_folder(self.place) is not None else None

        @contextmanager
        def loaded() -> Iterator[Loaded]:
            base = load_target(str(self.place), recipe, task, on=on)
            with tempfile.TemporaryDirectory() as scratch:
                yield base, build_scorer(recipe, task, base, Path(scratch))

        return loaded

    def is_same(self, other: Side) -> bool:
        """Return True if both are the same files, with the same facts that decide answers."""
        facts = (deciding(read_sora_file(side.place / SORA_FILE)[0]) for side in (self, other))
        one, two = facts
        return bool(self.digest) and self.digest == other.digest and one == two


def gate(
    a: Side,
    b: Side,
    recipe: Recipe,
    rows: TestRows,
    promise: Promise,
    labels: Labels | None,
    tell: Callable[[str], None],
) -> Outcome:
    """Test whether B is no worse than A by more than a promise allows.

    Args:
        recipe: scores both.
        rows: rows that neither was trained on, as far as that is known.
        labels: of a promise that asks for labels.
        tell: prints what the rows can certify.

    Raises:
        WaitingError: labels are wanted.
    """
    if labels is None:
        return _by_scores(a, b, recipe, rows, promise, tell)
    return _by_labels(a, b, recipe, rows, promise, tell, labels)


def _by_labels(
    a: Side,
    b: Side,
    recipe: Recipe,
    rows: TestRows,
    promise: Promise,
    tell: Callable[[str], None],
    labels: Labels,
) -> Outcome:
    size, model = b.size, b.model(recipe, rows.task)
    made = _candidate(b, size), model
    found = asked_outcome(
        reference_of(a.size, NAME, 1.0, a.digest),
        a.model(recipe, rows.task),
        [Planned(size, 1.0, model, lambda: made)],
        rows,
        promise,
        labels,
        tell,
        recipe=recipe,
        about={"a": a.digest or a.reference, "b": b.digest or b.reference},
        of_two=True,
    )
    (tested,) = found.candidates
    if tested.test is None:
        return found

    def exchanged() -> Bound:
        raise AssertionError("the counts tell the lower bound")

    return _with_lower(found, tested.test, exchanged)


def _by_scores(
    a: Side,
    b: Side,
    recipe: Recipe,
    rows: TestRows,
    promise: Promise,
    tell: Callable[[str], None],
) -> Outcome:
    with a.model(recipe, rows.task)() as (base, trainer):
        with recipe.placing():
            encoded = rows.distinct_on(base)
        say_notes(encoded.notes())
        full = encoded.scores(trainer)
    bound, promise = method_told(full, promise, tell)
    with b.model(recipe, rows.task)() as (base, trainer):
        small = encoded.on(base).scores(trainer)
    test = drop_bound(full, small, promise.confidence).judged(promise.max_drop)
    statistic = statistic_of(full)
    if bound.smallest_drop is None and test.is_of_many:
        smallest = statistic.beside(full, small, len(full), promise.confidence)
        bound = bound.model_copy(update={"smallest_drop": smallest})
    about = reference_of(a.size, NAME, statistic.score(full, full), a.digest)
    candidate = _candidate(b, b.size).model_copy(update={"test": test})
    found = Outcome(promise, bound, about, [candidate], {TEST: encoded.row_set()}, full)
    return _with_lower(found, test, lambda: drop_bound(small, full, promise.confidence))


def _candidate(b: Side, size: Size) -> Candidate:
    return Candidate(**size.model_dump(), directory=b.reference, digest=b.digest, test=None)


def _with_lower(found: Outcome, test: Bound, exchanged: Callable[[], Bound]) -> Outcome:
    """Return an outcome with the lower bound of the drop.

    Args:
        exchanged: returns the bound of the drop from B to A.
    """
    statistic, promise = statistic_of(found.scores), found.promise
    lower = None
    if promise.kind == "differ" or promise.basis != "answers":  # else a row that differs may be won
        lower = statistic.lower(test, len(found.scores), promise.confidence, exchanged)
    test = test.model_copy(update={"lower": lower})
    return replace(found, candidates=[found.candidates[0].model_copy(update={"test": test})])
