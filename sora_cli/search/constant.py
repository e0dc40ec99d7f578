"""The constant answer: one class for every row. A promise that it would keep promises nothing."""

from __future__ import annotations

from collections.abc import Mapping

from sora_cli.core.words import shown_value
from sora_cli.recipe.metric_facts import facts_of

BALANCED = "matthews_correlation"
"""A metric that is 0 for every constant answer, however the classes are shared out."""


def best_constant(metric: str, classes: Mapping[str, int]) -> tuple[str, float] | None:
    """Return the class that scores best as the answer to every row, with its score.

    Args:
        classes: number of rows of each class, in label order.

    Returns:
        None for a metric that is not known to score classes, and without rows.
    """
    import numpy as np  # certificates are read without it

    from sora_cli.tasks.row_scores import row_scores

    formula = facts_of(metric).of_classes
    if formula is None or not sum(classes.values()):
        return None
    wanted = np.repeat(np.arange(len(classes)), list(classes.values()))
    scores = {}
    for number, name in enumerate(classes):
        given = np.full(len(wanted), number)
        parts = (given == wanted,) if metric == "accuracy" else (given, wanted)
        scores[name] = row_scores(metric, formula, *parts).value
    best = max(scores, key=lambda name: scores[name])
    return best, scores[best]


def nothing_promised(
    metric: str, max_drop: float, classes: Mapping[str, int], *, full: float | None = None
) -> str | None:
    """Return a sentence on the constant answer that would keep a promise; None: none would.

    Args:
        full: score at full rank; None: not known yet. It is at most 1, and the sentence then comes
            if the promise gives away half of the constant answer's distance from 1.
    """
    constant = best_constant(metric, classes)
    if constant is None:
        return None
    name, score = constant
    drop = (1.0 if full is None else full) - score
    # 0.99 - 0.95 is more than 0.04 in floats
    if round(drop, 9) > (max_drop if full is not None else 2 * max_drop):
        return None
    if full is None:
        return (
            f"a drop of {max_drop:g} promises little: always answering {shown_value(name)} is at "
            f"most {drop:.4f} worse than full rank"
        )
    return (
        f"this promises nothing: always answering {shown_value(name)} would keep it (on these "
        f"rows: {drop:+.4f})"
    )


def balanced_drop(classes: Mapping[str, int], rows: int) -> float | None:
    """Return the drop of `BALANCED` that rows can certify; None: only one of half of its range.

    It is that of a model which differs on one row from another without a mistake.

    Args:
        classes: numbers of other rows of the same kind, whose shares count.
        rows: number of test rows.
    """
    import numpy as np

    from sora_cli.recipe.tolerance import CONFIDENCE
    from sora_cli.search.few import few_rows_bound
    from sora_cli.tasks.row_scores import row_scores

    total = sum(classes.values())
    each = [round(number / total * rows) for number in classes.values()]
    wanted = np.repeat(np.arange(len(each)), each)
    bound = few_rows_bound(row_scores(BALANCED, BALANCED, wanted, wanted), 1, CONFIDENCE)
    return bound if bound is not None and bound < 0.5 else None
