"""Count false certificates of `sora auto` on made-up scores that just break the promise.

    python -m tools.auto.synthetic [--splits 2000] [--slow-splits 300]

Every size of a pool has a known drop. A promise equal to one of these drops is least favourable: a
size with exactly that drop may pass in at most 5 % of the splits. Rows are drawn independently from
the pool, so the pool's drop is the true drop. There are three kinds of pools: right-or-wrong rows,
of which few differ and some are won; classes, scored by Matthews' correlation; and numbers, scored
by Pearson's and Spearman's correlations. The last two columns are about the two promises that the
rows can be expected to certify: how often a size is certified, and its share of the parameters
(median).
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator

import numpy as np

from sora_cli.core.console import emit, say
from sora_cli.tasks.row_scores import RowScores, row_scores
from tools.auto.decide import Setting
from tools.auto.replay import Outcome, replay
from tools.auto.stored import FULL, UNCUT, Stored, StoredSize

Worse = Callable[[float], RowScores]
"""Makes the scores of a worse model; its argument says by how much."""
_POOL = 40_000  # rows: enough to make shares of differing rows nearly exact
_SIZES = 6
_ROWS = ((30, 120), (70, 207), (250, 750), (1000, 3000))
"""Numbers of screening rows and test rows."""


def main() -> None:
    """Make the pools, replay the decisions, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--splits", type=int, default=2000, help="splits per pool and row number")
    parser.add_argument("--slow-splits", type=int, default=300, help="the same for slow metrics")
    parser.add_argument("--pools", default="", help="only pools whose name begins with this")
    options = parser.parse_args()
    emit(
        "| pool | rows | promises | certified wrongly, mean | largest | limit | certified | size |"
    )
    emit("| --- |" + " ---: |" * 7)
    for name, stored in pools():
        if not name.startswith(options.pools):
            continue
        splits = options.slow_splits if name.startswith("numbers") else options.splits
        for screening, test in _ROWS:
            if name.startswith("numbers") and test > 1000:
                continue  # rank correlations of so many resamples take hours
            say(f"{name}, {test} test rows, {splits} splits ...")
            outcomes = replay(stored, Setting(screening, test), splits)
            least = [one for one in outcomes if not one.multiple]
            if least:  # the rows can certify the drop of a size at all
                usual = [one for one in outcomes if one.multiple]
                emit(_line(name, screening + test, least, usual))


def _line(name: str, rows: int, least: list[Outcome], usual: list[Outcome]) -> str:
    """Return a line of the table.

    Args:
        least: outcomes of the least favourable promises.
        usual: outcomes of the promises that the rows can be expected to certify.
    """
    broken = [one.broken for one in least]
    limit = 0.05 + 2 * least[0].error  # two standard errors above the level
    sizes = [one.share for one in usual if one.certified]
    return (
        f"| {name} | {rows:,} | {len(least)} | {np.mean(broken):.1%} | {max(broken):.1%} | "
        f"{limit:.1%} | {np.mean([one.certified for one in usual]):.0%} | "
        f"{np.mean(sizes) if sizes else math.nan:.0%} |"
    )


def pools() -> Iterator[tuple[str, Stored]]:
    """Yield all pools with their names."""
    for differing in (0.01, 0.04):
        for won in (0.0, 0.2, 0.4):
            name = f"right or wrong, up to {differing:.0%} differ, {won:.0%} of them won"
            yield name, right_or_wrong(differing, won)
    for positive in (0.5, 0.1):
        yield f"classes, {positive:.0%} positive, up to 8% differ", classes(positive, 0.08)
    for noise in (0.1, 0.4):
        yield f"numbers, noise of up to {noise:g} deviations", numbers(noise)


def right_or_wrong(differing: float, won: float, *, rows: int = _POOL) -> Stored:
    """Return a pool of right-or-wrong rows; smaller sizes differ on more rows, by exact counts.

    Args:
        differing: share of rows on which the smallest size differs.
        won: share of the differing rows that the smaller model gets right.
    """
    rng = np.random.default_rng(0)
    full = (np.arange(rows) < 0.8 * rows).astype(float)
    right, wrong = np.flatnonzero(full == 1), np.flatnonzero(full == 0)

    def worse(share: float) -> RowScores:
        number = round(share * rows)
        small = full.copy()
        small[rng.permutation(wrong)[: round(won * number)]] = 1
        small[rng.permutation(right)[: number - round(won * number)]] = 0
        return row_scores("accuracy", "right", small)

    return worse_sizes(row_scores("accuracy", "right", full), worse, differing)


def classes(positive: float, differing: float, *, rows: int = _POOL) -> Stored:
    """Return a pool of two classes; smaller sizes predict another class on more rows."""
    rng = np.random.default_rng(1)
    wanted = (rng.random(rows) < positive).astype(int)
    given = np.where(rng.random(rows) < 0.1, 1 - wanted, wanted)

    def worse(share: float) -> RowScores:
        other = np.where(rng.random(rows) < share, 1 - given, given)
        return row_scores("matthews_correlation", "matthews_correlation", other, wanted)

    return worse_sizes(
        row_scores("matthews_correlation", "matthews_correlation", given, wanted), worse, differing
    )


def numbers(noise: float, *, rows: int = _POOL // 8) -> Stored:  # correlations are slow
    """Return a pool of numbers; smaller sizes add more noise, and more to larger numbers."""
    rng = np.random.default_rng(2)
    wanted = np.clip(rng.normal(2.5, 1.4, size=rows), 0, 5)  # as people give similarities
    given = wanted + 0.7 * rng.normal(size=rows)

    def worse(share: float) -> RowScores:
        # heavy tails: a few rows decide, which is hard for a bootstrap
        other = given + share * (0.5 + wanted / 5) * rng.standard_t(5, size=rows)
        return row_scores("pearson_spearman", "pearson_spearman", other, wanted)

    return worse_sizes(
        row_scores("pearson_spearman", "pearson_spearman", given, wanted), worse, noise
    )


def worse_sizes(full: RowScores, worse: Worse, most: float) -> Stored:
    """Return a pool with worse scores for smaller sizes.

    The unhealed scores are better than the healed ones, unlike in practice, so that screening lets
    sizes through to the test that break the promise.
    """
    shares = [most * (number + 1) / _SIZES for number in range(_SIZES)]
    healed = {f"healed-{number}": worse(share) for number, share in enumerate(shares)}
    unhealed = {f"cut-{number}": worse(0.8 * share) for number, share in enumerate(shares)}
    rows = len(full)
    sizes = [(1000 >> number, 100 >> number, 8) for number in range(1, _SIZES + 1)]
    return Stored(
        task="synthetic",
        seed=0,
        rows=rows,
        screening=rows,
        planned=(0, 0),
        trained=0,
        full=(1000, 100, 8),
        sizes=tuple(StoredSize(size[0] / 1000, size[0], size, size) for size in sizes),
        lora={f"lora-{rank}": 125 * rank for rank in (1, 2, 4)},
        scores={FULL: full, **healed, **{f"lora-{rank}": full for rank in (1, 2, 4)}},
        unhealed={UNCUT: full, **unhealed},
        reported={},
    )


if __name__ == "__main__":
    main()
