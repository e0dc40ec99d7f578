"""A search among finished models that asks people for labels (`search.asked_search`).

The reference is an adapter or a model, and the sizes are cut from it, healed, or are one other
model. Nothing but answers is needed of them, and each model is loaded when it is scored. A quarter
of the rows without labels show how many rows differ, so that the number of test rows can be
planned; the others are the pool from which these are drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sora_cli.core.console import say_notes
from sora_cli.core.processes import from_first_process
from sora_cli.recipe.recipe import Recipe
from sora_cli.search.asked import Asked
from sora_cli.search.asked_search import AskedSearch
from sora_cli.search.asking import Labels
from sora_cli.search.auto_search import Made, Maker
from sora_cli.search.evidence import Candidate, Measured, Reference, Screened
from sora_cli.search.kept_answers import Memory
from sora_cli.search.promise import Promise
from sora_cli.search.record import SearchState
from sora_cli.search.row_set import POOL, SCREENING, TEST
from sora_cli.search.rows import method_on
from sora_cli.search.search import Outcome
from sora_cli.search.size import Size
from sora_cli.search.statistic import BoundMethod
from sora_cli.search.statistics import statistic_in
from sora_cli.search.test_rows import SEED, EncodedRows, TestRows
from sora_cli.search.words import promise_lines, tested_line
from sora_cli.tasks.row_scores import RowScores, asked_scores
from sora_cli.train.trainer import AdapterTrainer

Model = Callable[[], AdapterTrainer]
"""Puts a model into memory; returns the trainer that scores it."""
Tell = Callable[[str], None]
_PART = 4  # one row in so many screens
_MOST = 500  # rows that screen: the share that differs need not be known better


@dataclass(frozen=True)
class Planned:
    """A size that may be tested.

    Attributes:
        size: as far as it is known before it is made.
        share: of the reference's parameters.
        before: the model that is screened: the size itself, or what it is before healing.
        make: makes the size, or finds it; None: it is not there, which ends the testing.
    """

    size: Size
    share: float
    before: Model
    make: Callable[[], tuple[Candidate, Model] | None]


class FinishedMaker(Maker):
    """Scores finished models.

    Args:
        reference, model: the model that drops are measured against.
        sizes: from the largest to the smallest.
        rows: the rows without labels that no model was trained on.
        state: what the search has found so far.
        recipe: scores the models; its keys are named where rows are at fault.
    """

    def __init__(
        self,
        reference: Reference,
        model: Model,
        sizes: Sequence[Planned],
        rows: TestRows,
        state: SearchState,
        recipe: Recipe,
        tell: Tell,
    ) -> None:
        self._reference, self._model, self._sizes = reference, model, sizes
        self._state, self._tell = state, tell
        number = min(max(len(rows) // _PART, 1), _MOST)
        parts = rows.parts(number, len(rows) - number, SEED)
        trainer = model()
        base = trainer.base
        with recipe.placing():
            self._screening = parts[SCREENING].all_on(base)
            screened = [(parts[SCREENING].task, self._screening.rows)]
            self._test = parts[TEST].distinct_on(base, screened=screened)
            self._screened = self._screening.scores(trainer)
        self._scores: dict[int | None, RowScores] = {}
        state.rows = {SCREENING: self._screening.row_set(), POOL: self._test.row_set()}

    @property
    def pool(self) -> EncodedRows:
        """The rows that can test, or a sample of them."""
        return self._test

    def full_rank(self) -> Reference:
        """Return the reference; it agrees with itself."""
        return self._reference

    def screened(self, promise: Promise, bound: BoundMethod) -> list[Screened]:
        """Return all sizes, with the share of the screening rows on which they differ."""
        del promise, bound
        found = []
        for planned in self._sizes:
            scores = self._of(planned.before, self._screening)
            differ = float(self._screened.differs(scores).mean())
            size = Screened(
                **planned.size.model_dump(),
                share=planned.share,
                max_params=planned.size.parameters,
                screening=Measured(score=1 - differ, drop=differ),
                named=True,
            )
            found.append(size)
        return found

    def size(self, number: int, named: Screened, *, scored: bool) -> Made | None:
        """Make a size, and score it."""
        del named, scored
        made = self._sizes[number].make()
        if made is None:
            return None
        candidate, model = made
        self._scores[number] = self._of(model, self._test)
        return candidate, self._scores[number]

    def scored(self, number: int, named: Screened) -> RowScores:
        """Return the scores of a size that was made before."""
        del named
        return self._scores[number]

    def draw(self, rows: int) -> TestRows:
        """Draw test rows from the pool."""
        self._tell(
            f"{rows:,} of {len(self._test):,} rows are drawn to test: as many as the promise needs "
            "and the labels reach"
        )
        trainer = self._model()
        self._test = self._test.drawn(rows, trainer.base, SEED)
        self._scores[None] = self._test.scores(trainer)
        self._state.rows[TEST] = self._test.row_set()
        return self._test.part

    def scores_at_full_rank(self) -> RowScores:
        """Return the reference's scores on the test rows."""
        return self._scores[None]

    @staticmethod
    def _of(model: Model, rows: EncodedRows) -> RowScores:
        trainer = model()
        # two finished models may read rows by lengths and templates of their own
        return from_first_process(rows.on(trainer.base, trainer.task).scores(trainer))


def _seen_share(size: Screened, rows: int) -> float:
    """Return the share on which a model differs, as if one more row had been seen to differ."""
    return (size.screening.drop * rows + 1) / (rows + 1)


def asked_outcome(
    reference: Reference,
    model: Model,
    sizes: Sequence[Planned],
    rows: TestRows,
    promise: Promise,
    labels: Labels,
    tell: Tell,
    *,
    recipe: Recipe,
    about: dict[str, Any],
    of_two: bool = False,
) -> Outcome:
    """Ask for labels of the rows on which sizes differ, and test the sizes with all labels.

    Args:
        reference, model, sizes, rows, recipe: see `FinishedMaker`.
        about: what the labels are asked for, beside the promise and the rows.
        of_two: the only size is another model, B, of which nothing is expected beforehand.

    Raises:
        WaitingError: labels are wanted.
    """
    state = SearchState()
    maker = FinishedMaker(reference, model, sizes, rows, state, recipe, tell)
    pool = len(maker.pool)
    say_notes(maker.pool.notes("rows without labels"))
    told = promise.model_dump(mode="json", exclude={"labels", "ask_all", "max_drop"})
    facts = {**about, "promise": told, "rows": state.rows[POOL].digest}
    known = labels.remembered(facts)
    first = promise
    if known.planned:
        before = known.model_dump(include={"planned", "by_size", "all_lost", "changed"})
        state.asked = Asked(rows=0, **before)
        first = state.asked.first(promise)
    bound = method_on(asked_scores([]), pool, first)
    search = AskedSearch(maker, state, promise, bound, pool, {"rows": SEED})
    search.read, search.enters = labels.read, labels.entered
    if of_two:
        search.expected, search.largest = _seen_share, "B"
    statistic = statistic_in(bound, promise)
    for line in promise_lines(search.promise, statistic, bound, pool):
        tell(line)
    for _ in search.run():
        pass
    asked = state.asked
    assert asked is not None
    memory = Memory(
        about=facts,
        planned=asked.planned,
        sizes=asked.sizes,
        by_size=asked.by_size,
        all_lost=asked.all_lost,
        rows=known.rows,
        answers=dict(search.wanted.given),
        changed=asked.changed,
    )
    labels.conclude(search, memory)
    nouns = statistic.nouns(search.promise, reference.name)
    for size in search.tested:
        if size.test is not None:
            tell(tested_line(size.test, nouns, search.promise))
    return Outcome(
        search.promise,
        search.bound,
        reference,
        list(search.tested),
        dict(state.rows),
        maker.scores_at_full_rank(),
        asked=asked,
        screened=tuple(state.screened),
        memory=memory.model_copy(update={"changed": asked.changed}),
        left=search.wanted,
        tested=maker.pool,
    )
