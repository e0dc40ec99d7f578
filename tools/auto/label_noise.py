"""Replay promises with wrong labels: how often are they broken, and what do two labellers mend?

    python -m tools.auto.label_noise [--draws 1000]

1,640 test rows, 2.5 % of which are answered differently, and a promise of one point. The true drop
is one point exactly: whatever is certified is broken. Then the same for a size without a drop:
whatever is certified is right. Each label is wrong with a probability, in one of three ways. A
second labeller is as often wrong: in other rows, or in the same way on half of the rows.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping

import numpy as np

from sora_cli.core.console import emit, say
from sora_cli.recipe.tolerance import AGREEMENT
from sora_cli.search.asked_labels import counted
from sora_cli.search.statistic import Labelled
from sora_cli.tasks.row_scores import ASKED, UNLABELLED, row_scores
from tools.auto.asked import Verdicts

ROWS, DIFFERING, PROMISE = 1640, 0.025, 0.01
RATES = (0.0, 0.01, 0.02, 0.05, 0.1)
NEITHER = {2: 0.0, 3: 0.05, 10: 0.15}
"""Share of the differing rows whose true class neither model gave, by the number of classes."""
LABELLERS = ("one", "two", "two, half shared")
FULL, SMALL = 0, 1
"""The classes that the models give on a differing row; the others are numbered from 2."""
Wrong = Callable[[np.ndarray, int, np.random.Generator], np.ndarray]
"""Takes true classes (rows,) and the number of classes; returns wrong ones."""


def _other(truth: np.ndarray, classes: int, rng: np.random.Generator) -> np.ndarray:
    del classes
    return np.where(truth < 2, 1 - truth, rng.integers(2, size=len(truth)))


def _neither(truth: np.ndarray, classes: int, rng: np.random.Generator) -> np.ndarray:
    return rng.integers(2, classes, size=len(truth)) if classes > 2 else truth


def _small(truth: np.ndarray, classes: int, rng: np.random.Generator) -> np.ndarray:
    del classes, rng
    return np.full(len(truth), SMALL)


WAYS: Mapping[str, Wrong] = {
    "the other model's answer": _other,
    "a class that neither gave": _neither,
    "the small model's answer": _small,
}


def main() -> None:
    """Print how often sizes are certified, with a drop of the promise and without a drop."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--draws", type=int, default=1000, help="draws for each cell")
    draws = parser.parse_args().draws
    columns = [f"{classes}: {number}" for classes in NEITHER for number in LABELLERS]
    verdicts = Verdicts(ROWS, PROMISE)
    for drop, what in ((PROMISE, "broken"), (0.0, "certified")):
        emit(f"| {what}; wrong labels | of the labels | {' | '.join(columns)} |")
        emit("| --- |" + " ---: |" * (1 + len(columns)))
        for way, wrong in WAYS.items():
            for rate in RATES if wrong is _other else RATES[1:]:
                say(f"{what}: {way}, {rate:.0%} ...")
                cells = [
                    "" if wrong is _neither and classes == 2 else
                    _cell(drop, classes, wrong, rate, labellers, draws, verdicts)
                    for classes in NEITHER for labellers in LABELLERS
                ]  # fmt: skip
                emit(f"| {way if rate else 'none'} | {rate:.0%} | {' | '.join(cells)} |")
        emit("")


def _cell(
    drop: float,
    classes: int,
    wrong: Wrong,
    rate: float,
    labellers: str,
    draws: int,
    verdicts: Verdicts,
) -> str:
    """Return how often the promise is certified, and without a remark on labels of neither."""
    rng = np.random.default_rng(classes)
    some = DIFFERING * (1 - NEITHER[classes])
    shares = [(some + drop) / 2, (some - drop) / 2, DIFFERING - some, 1 - DIFFERING]
    certified = plain = 0
    for _ in range(draws):
        lost, won, neither, _alike = rng.multinomial(ROWS, shares)
        others = _neither(np.zeros(neither, dtype=np.int64), max(classes, 3), rng)
        truth = np.concatenate([np.full(lost, FULL), np.full(won, SMALL), others])
        counts = _count(truth, _labels(truth, classes, wrong, rate, labellers, rng))
        if verdicts.keeps(counts):
            certified += 1
            plain += verdicts.keeps(counts.strictly)
    text = f"{certified / draws:.1%}"
    return text if plain == certified else f"{text} ({plain / draws:.1%})"


def _labels(
    truth: np.ndarray,
    classes: int,
    wrong: Wrong,
    rate: float,
    labellers: str,
    rng: np.random.Generator,
) -> np.ndarray:
    """Return the labels of two people, (rows, 2)."""
    labels = np.stack([truth, truth], axis=1)
    mistaken = rng.random((len(truth), 2)) < rate
    labels = np.where(
        mistaken, np.stack([wrong(truth, classes, rng) for _ in range(2)], axis=1), labels
    )
    if labellers == "one":
        labels[:, 1] = UNLABELLED
    elif labellers != "two":
        same = rng.random(len(truth)) < 0.5
        labels[same, 1] = labels[same, 0]
    return labels


def _count(truth: np.ndarray, labels: np.ndarray) -> Labelled:
    """Count the differing rows by their labels, as a test does; the others do not count."""
    models = (np.full(len(truth), model) for model in (FULL, SMALL))
    full, small = (row_scores(AGREEMENT, ASKED, model, *labels.T) for model in models)
    return counted(full, small)


if __name__ == "__main__":
    main()
