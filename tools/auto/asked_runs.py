"""Answers beside true labels: stored runs whose rows are right or wrong, and pools that are made.

A row's true answer is `RIGHT`, whatever the task calls it; wrong answers that differ have other
numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from sora_cli.recipe.tolerance import AGREEMENT
from sora_cli.tasks.row_scores import ASKED, SAME, UNLABELLED, RowScores, row_scores
from tools.auto.stored import FULL, Stored, read_all
from tools.auto.synthetic import worse_sizes
from tools.auto.train import ANSWERS_FILE, FILE

RIGHT, WRONG = 1.0, 2.0
"""The answer of the truth, and the first other one."""
_POOL = 40_000


def by_accuracy(stored: Stored) -> Stored:
    """Return a run of classes with right-or-wrong rows in place of its scores."""

    def right(scores: RowScores) -> RowScores:
        same = scores.parts[:, 0] == scores.parts[:, -1]  # of right-or-wrong rows: one column
        is_right = scores.parts[:, 0] if scores.is_right_or_wrong else same
        return row_scores("accuracy", "right", is_right)

    return _mapped(stored, lambda scores, _: right(scores))


def labelled(stored: Stored, answered: Stored | None) -> Stored:
    """Return a run with answers and true labels in place of its right-or-wrong rows.

    Args:
        answered: the answers of the same adapters, which tell wrong answers apart; None: all wrong
            answers to a row are the same one, as of two classes.
    """

    def answers(scores: RowScores, given: RowScores | None) -> RowScores:
        right = scores.parts[:, 0] == 1
        other = np.zeros(len(scores)) if given is None else given.parts[:, 0]
        return asked(np.where(right, RIGHT, WRONG + other))

    return _mapped(stored, answers, answered)


def asked(answers: np.ndarray) -> RowScores:
    """Return answers, of which `RIGHT` is the true one, beside the true labels."""
    truth, none = np.full(len(answers), RIGHT), np.full(len(answers), UNLABELLED)
    return row_scores(AGREEMENT, ASKED, answers, truth, none)


def _mapped(
    stored: Stored,
    change: Callable[[RowScores, RowScores | None], RowScores],
    beside: Stored | None = None,
) -> Stored:
    """Return a run with other scores; plain ranks are left out."""

    def changed(part: str) -> dict[str, RowScores]:
        others = {} if beside is None else getattr(beside, part)
        models: dict[str, RowScores] = getattr(stored, part)
        return {
            name: change(scores, others.get(name))
            for name, scores in models.items()
            if not name.startswith("lora")
        }

    return replace(stored, scores=changed("scores"), unhealed=changed("unhealed"), lora={})


@dataclass(frozen=True)
class Case:
    """A stored run in three ways: right or wrong, with asked labels, and with answers alone."""

    by_labels: Stored
    by_asking: Stored
    by_answers: Stored


def cases(seeds: Sequence[int]) -> Iterator[Case]:
    """Yield the stored runs whose rows are right or wrong, and CoLA's by accuracy."""
    answered = {(one.task, one.seed): one for one in read_all(ANSWERS_FILE)}
    for one in read_all(FILE):
        known = one.scores[FULL].is_right_or_wrong or one.task == "cola"
        if known and one.seed in seeds:
            by_labels, given = by_accuracy(one), answered.get((one.task, one.seed))
            if given is not None and not _is_of(given, by_labels):
                given = None
            by_asking = labelled(by_labels, given)
            yield Case(by_labels, by_asking, _mapped(by_asking, lambda scores, _: _answers(scores)))


def _answers(scores: RowScores) -> RowScores:
    return RowScores(AGREEMENT, SAME, scores.parts[:, :1])


def _is_of(answered: Stored, scored: Stored) -> bool:
    """Return True if answers are those of the adapters that were scored, on the same rows."""
    if answered.rows != scored.rows:
        return False
    pairs = [
        (answered.scores[name], scores) for name, scores in scored.scores.items() if name != FULL
    ]
    first, right = answered.scores[FULL], scored.scores[FULL]
    return not any((right.differs(s) & ~first.differs(a)).any() for a, s in pairs)


def pools() -> Iterator[tuple[str, Stored]]:
    """Yield made pools: smaller sizes differ on more rows, by exact counts."""
    for differing, won, neither in (
        (0.02, 0, 0),
        (0.02, 0.3, 0),
        (0.06, 0.4, 0),
        (0.06, 0.35, 0.05),
    ):
        name = f"up to {differing:.0%} differ, {won:.0%} of them won, {neither:.0%} neither"
        yield name, _made(differing, won, neither)


def _made(differing: float, won: float, neither: float) -> Stored:
    rng = np.random.default_rng(0)
    full = np.where(np.arange(_POOL) < 0.8 * _POOL, RIGHT, WRONG)
    right, wrong = np.flatnonzero(full == RIGHT), np.flatnonzero(full == WRONG)

    def worse(share: float) -> RowScores:
        number, small = round(share * _POOL), full.copy()
        others = rng.permutation(wrong)
        wins, changes = round(won * number), round(neither * number)
        small[others[:wins]] = RIGHT
        small[others[wins : wins + changes]] = WRONG + 1
        small[rng.permutation(right)[: number - wins - changes]] = WRONG
        return asked(small)

    return worse_sizes(asked(full), worse, differing)
