"""Try to break promises on rows that repeat an input, dealt as now and as before `data.repeats`.

    python -m tools.auto.repeats [--splits 1000] [--inputs 2000]

A pool has distinct inputs, some of which stand in several rows. A smaller adapter loses some of the
inputs and wins others, and the promise equals its mean drop over the distinct inputs of the pool:
the least favourable case, in which at most 5 % of the certificates may be wrong. On an input that
training has seen, both adapters are right. The rows are dealt by the functions of the program. With
`read alike`, the repeats are rows whose raw inputs differ and that a model reads alike (another
capital, a blank, the same first tokens), so that only the encoded inputs show them.

Labels test a drop (the bound of `--max-drop`), or answers a share that differs (`--max-differ`).
Before: each row was dealt by itself, and all rows that were held out tested.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from sora_cli.core.console import emit, say
from sora_cli.data.repeats import first_of_each, groups_of, rows_in, share_of
from sora_cli.search.binomial import share_bound
from sora_cli.search.paired import exact_bound
from sora_cli.search.screening import part_rows

CONFIDENCE = 0.95
REPEATS = (0.0, 0.10, 0.33, 0.90)
"""Shares of the rows that repeat an input of another row."""
_HELD_OUT = 1 / 5  # of all rows, a quarter of which screens: as the program plans
_SCREENING = 1 / 4
_STOCK = 1 / 10  # of the inputs are stock phrases, on which all repeats fall below 90 %
_LOST, _WON = 0.06, 0.02  # shares of the inputs; the drop is their difference

bound_of_drop = lru_cache(maxsize=None)(exact_bound)
bound_of_share = lru_cache(maxsize=None)(share_bound)


@dataclass(frozen=True)
class Pool:
    """Rows of a data set.

    Attributes:
        inputs: (rows,) number of the input that the model reads.
        raw: (rows,) number of the raw input.
        lost: (inputs,) 1: the smaller adapter loses it, -1: it wins it, 0: both are alike.
    """

    inputs: np.ndarray
    raw: np.ndarray
    lost: np.ndarray


def pool_of(inputs: int, repeats: float, rng: np.random.Generator, *, alike: bool) -> Pool:
    """Return a pool with a share of rows that repeat an input.

    Args:
        alike: the raw inputs of repeats differ.
    """
    more = round(inputs * repeats / (1 - repeats))
    stock = inputs if repeats > 0.5 else round(inputs * _STOCK)
    rows = np.concatenate([np.arange(inputs), rng.integers(stock, size=more)])
    lost = np.zeros(inputs)
    order = rng.permutation(inputs)
    lost[order[: round(inputs * _LOST)]] = 1
    lost[order[-round(inputs * _WON) :]] = -1
    return Pool(rows, np.arange(len(rows)) if alike else rows, lost)


def test_rows(pool: Pool, seed: int, *, now: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows that test, and all rows held for the test."""
    groups = groups_of([pool.raw]) if now else np.arange(len(pool.raw))
    number = int(groups.max()) + 1
    order = np.random.default_rng(seed).permutation(number)
    first = share_of(number, round(len(pool.raw) * _HELD_OUT), len(pool.raw))
    held, train = (rows_in(groups, part) for part in (order[:first], order[first:]))
    own = groups_of([pool.raw[held]]) if now else np.arange(len(held))
    parts = part_rows(int(own.max()) + 1, seed, screening=_SCREENING)
    screening, test = (held[np.sort(rows_in(own, part))] for part in parts)
    if not now:
        return test, test
    keys = [[pool.inputs[part]] for part in (test, train, screening)]
    return test[first_of_each(keys[0], keys[1:], seed)[0]], test


def broken(pool: Pool, splits: int, *, now: bool, answers: bool) -> tuple[float, float, float]:
    """Return the share of splits whose bound is below the truth, and two means.

    The means are of the number of rows that test, and of the drop over all test rows.
    """
    outcome = np.abs(pool.lost) if answers else pool.lost
    truth, wrong, numbers, drops = outcome.mean(), 0, 0, 0.0
    for seed in range(splits):
        testing, every = test_rows(pool, seed, now=now)
        seen = np.setdiff1d(np.arange(len(pool.inputs)), every)
        unseen = ~np.isin(pool.inputs, pool.inputs[seen])  # of screening rows both are right, too
        given = outcome[pool.inputs] * unseen
        lost, won = int((given[testing] > 0).sum()), int((given[testing] < 0).sum())
        if not len(testing):
            bound = 1.0  # training has seen every input: the program stops
        elif answers:
            bound = bound_of_share(lost, len(testing), CONFIDENCE)
        else:
            bound = bound_of_drop(lost, won, len(testing), CONFIDENCE)
        wrong += bound <= truth
        numbers += len(testing)
        drops += given[every].mean()
    return wrong / splits, numbers / splits, drops / splits


def main() -> None:
    """Print the shares of wrong certificates."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--splits", type=int, default=1000)
    parser.add_argument("--inputs", type=int, default=2000, help="distinct inputs of a pool")
    options = parser.parse_args()
    emit("| tested by | repeats | rows that repeat | rows | promise | test rows | broken | drop by "
         "rows | before: test rows | before: broken |")  # fmt: skip
    emit("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for answers in (False, True):
        for alike in (False, True):
            for share in REPEATS if not alike else REPEATS[1:]:
                say(f"answers {answers}, alike {alike}, {share:.0%} ...")
                pool = pool_of(options.inputs, share, np.random.default_rng(0), alike=alike)
                now, before = (
                    broken(pool, options.splits, now=each, answers=answers)
                    for each in (True, False)
                )
                truth = (np.abs(pool.lost) if answers else pool.lost).mean()
                emit(
                    f"| {'answers' if answers else 'labels'} | {'read alike' if alike else 'raw'} "
                    f"| {share:.0%} | {len(pool.inputs):,} | {truth:.3f} | {now[1]:,.0f} | "
                    f"{now[0]:.1%} | {now[2]:+.4f} | {before[1]:,.0f} | {before[0]:.1%} |"
                )
    error = np.sqrt(CONFIDENCE * (1 - CONFIDENCE) / options.splits)
    emit(f"\nat most 5 %, and up to {0.05 + 2 * error:.1%} by chance (two standard errors)")


if __name__ == "__main__":
    main()
