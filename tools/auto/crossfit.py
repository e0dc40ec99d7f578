"""Try to break cross-fitting's bound by halves that depend on each other strongly.

    python -m tools.auto.crossfit [--draws 20000] [--rows 150 540]

Each half tests a pair of adapters on right-or-wrong rows. Every size that breaks the promise has a
true drop of exactly the promise in both pairs, the least favourable case, so it may be certified in
at most 5 % of the draws. The halves are coupled in several ways, from independent to the worst that
is possible with these halves (Makarov's bound: the luckiest draws of one half meet the least lucky
of the lucky draws of the other). Sizes are named by somebody who has seen both tests, or the test
rows decide which size is the first that breaks the promise: both happen through the adapters that
these rows trained, and here as strongly as possible.

Three rules are compared: the counts of both halves as one sample at 95 %; the mean of two bounds at
97.5 % each, which is valid for one size that is fixed beforehand; and the rule that is used, whose
error is shared among all sizes that could have been named.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np

from sora_cli.core.console import emit, say
from sora_cli.search.halves import HALF_SHARES, HALVES, half_confidence
from sora_cli.search.paired import exact_bound

CONFIDENCE = 0.95
_LOST, _WON = 0.03, 0.01  # shares of rows; the true drop is their difference
PROMISE = _LOST - _WON
_BETTER = -0.02  # true drop of a size that keeps the promise beyond doubt

Counts = np.ndarray
"""Rows lost and won by draw and size, (draws, sizes, 2)."""
Rule = Callable[[Counts, Counts, int], np.ndarray]
"""Bounds (draws, sizes) of the mean drop from both halves' counts, and the rows of a half."""


def main() -> None:
    """Print the shares of wrong certificates by coupling and rule."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--draws", type=int, default=20_000)
    parser.add_argument("--rows", type=int, nargs="+", default=[150, 540], help="rows of a half")
    options = parser.parse_args()
    emit("| rows of a half | halves | size | counts as one sample, 95 % | mean of two, 97.5 % |"
         " as used |")  # fmt: skip
    emit("| ---: | --- | --- | ---: | ---: | ---: |")
    for rows in options.rows:
        say(f"{rows} rows, {options.draws} draws ...")
        for halves, size, shares in broken(rows, options.draws):
            figures = " | ".join(f"{share:.2%}" for share in shares)
            emit(f"| {rows} | {halves} | {size} | {figures} |")
    error = np.sqrt(CONFIDENCE * (1 - CONFIDENCE) / options.draws)
    emit(f"\nat most 5 %, and up to {0.05 + 2 * error:.2%} by chance (two standard errors)")


def broken(rows: int, draws: int, seed: int = 0) -> list[tuple[str, str, list[float]]]:
    """Return coupling, choice of the size, and shares of wrong certificates by rule."""
    rng, sizes = np.random.default_rng(seed), len(HALF_SHARES)
    one, two = (_counts(rng, rows, (draws, sizes), PROMISE) for _ in HALVES)
    rules: list[Rule] = [
        _pooled,
        _mean_of(1 - (1 - CONFIDENCE) / 2),
        _mean_of(half_confidence(CONFIDENCE)),
    ]
    results = []
    for halves, other in (("independent", two), ("the same outcome", one)):
        bounds = [rule(one, other, rows) <= PROMISE for rule in rules]
        results.append((halves, "fixed", [float(passed[:, 0].mean()) for passed in bounds]))
        best = [float(passed.any(axis=1).mean()) for passed in bounds]
        results.append((halves, f"the luckiest of {sizes}", best))
    worst = [_worst(rule, one[:, 0], two[:, 0], rows) for rule in rules]
    results.append(("worst coupling", "fixed", worst))
    # Boole's bound, reached if each size is lucky in other draws: computed, not drawn
    union = [min(sizes * share, 1.0) for share in worst]
    results.append(("worst coupling", f"the luckiest of {sizes}", union))
    results.append(("independent", "test rows decide which size breaks", [
        _first_broken(rng, rule, one, two, rows) for rule in rules
    ]))  # fmt: skip
    return results


def _counts(rng: np.random.Generator, rows: int, shape: tuple[int, ...], drop: float) -> Counts:
    differing = _LOST + _WON
    lost = (differing + drop) / 2
    return rng.multinomial(rows, [lost, differing - lost, 1 - differing], size=shape)[..., :2]


def _pooled(one: Counts, two: Counts, rows: int) -> np.ndarray:
    return _bounds(one + two, 2 * rows, CONFIDENCE)


def _mean_of(confidence: float) -> Rule:
    def rule(one: Counts, two: Counts, rows: int) -> np.ndarray:
        bounds = _bounds(one, rows, confidence) + _bounds(two, rows, confidence)
        return np.asarray(bounds / 2)

    return rule


def _bounds(counts: Counts, rows: int, confidence: float) -> np.ndarray:
    """Return the exact bound for each pair of counts; each distinct pair is computed once."""
    pairs, place = np.unique(counts.reshape(-1, 2), axis=0, return_inverse=True)
    bounds = np.array([exact_bound(int(lost), int(won), rows, confidence) for lost, won in pairs])
    return np.asarray(bounds[place].reshape(counts.shape[:-1]))


def _worst(rule: Rule, one: Counts, two: Counts, rows: int) -> float:
    """Return the largest share of wrong certificates that any coupling of two halves gives.

    Of the k luckiest draws of each half, the luckiest of one meets the least lucky of the other;
    the largest k with which all of them pass is the most that any coupling reaches.
    """
    order = [np.argsort(_bounds(half, rows, CONFIDENCE), kind="stable") for half in (one, two)]
    first, second = one[order[0]], two[order[1]]

    def all_pass(k: int) -> bool:
        return k == 0 or bool((rule(first[:k], second[:k][::-1], rows) <= PROMISE).all())

    low, high = 0, len(one)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if all_pass(middle) else (low, middle)
    return low / len(one)


def _first_broken(
    rng: np.random.Generator, rule: Rule, one: Counts, two: Counts, rows: int
) -> float:
    """Return the share of wrong certificates if the test rows of one pair train the other badly.

    The second pair has the promised drop at a size if its training rows, which test the first
    pair, happen to look good there; otherwise it is so good that the size passes. Sizes are tested
    in a fixed sequence.
    """
    lucky = one[..., 0] - one[..., 1] <= np.quantile(one[..., 0] - one[..., 1], 0.1)
    better = _counts(rng, rows, two.shape[:-1], _BETTER)
    passed = rule(one, np.where(lucky[..., None], two, better), rows) <= PROMISE
    reached = np.logical_and.accumulate(passed, axis=1)  # passed, as all larger sizes did
    return float((reached & lucky).any(axis=1).mean())


if __name__ == "__main__":
    main()
