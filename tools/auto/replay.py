"""Replay the decisions of `sora auto` on thousands of splits of stored scores.

    python -m tools.auto.replay [docs/results/auto.jsonl] [--splits 2000] [--rows 0 1000] [--jobs 2]

Each split draws screening rows and test rows at random; the true drop is the drop on the whole
pool. `--rows 0` draws as many rows as the run itself would hold out, another number stands for
`auto.rows`. Two promises that the rows can be expected to certify are replayed, and the least
favourable promises, each equal to the true drop of one size. Metrics that are neither means
over rows nor counts, such as correlations, have slow bounds: for them `--slow-splits` splits are
replayed.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from sora_cli.core.console import emit, say
from sora_cli.search.bca import differing_rows
from sora_cli.search.screening import part_rows
from sora_cli.search.statistic import FEWEST_DIFFERING
from sora_cli.search.statistics import statistic_of
from tools.auto.decide import CONFIDENCE, Pool, Setting, Split
from tools.auto.stored import FULL, Stored, read_all
from tools.auto.train import FILE, RANKS

_FAST = {"right", "mean", "matthews_correlation", "f1", "entity_f1"}
_HALF = 0.005  # promises are rounded up to half a point
_SMALLEST = 1e-9  # a drop of 0 but for rounding is no promise that a size could break


@dataclass(frozen=True)
class Outcome:
    """The results of all splits with one promise.

    Attributes:
        rows: screening and test rows together.
        multiple: the promise as a multiple of the smallest promise that the rows can be expected to
            certify; 0: a least favourable promise.
        splits: number of splits.
        certified: share of splits that certified a size.
        broken: share of splits that certified a size with a true drop above the promise; of a least
            favourable promise: at or above it.
        share: median parameters of the certified sizes, as a share of full rank's.
        to_lora: geometric mean of their parameters divided by the parameters of the smallest plain
            rank with a drop within the promise on the same test rows.
        to_certified: the same ratio to the smallest plain rank that the test certifies; to full
            rank, if it certifies none.
    """

    task: str
    seed: int
    rows: int
    promise: float
    multiple: int
    splits: int
    certified: float
    broken: float
    share: float
    to_lora: float
    to_certified: float

    @property
    def error(self) -> float:
        """The Monte-Carlo standard error of a share of 5 %."""
        level = 1 - CONFIDENCE
        return math.sqrt(level * (1 - level) / self.splits)


def main() -> None:
    """Replay all stored runs, and print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("file", nargs="?", type=Path, default=FILE, help="file of tools.auto.train")
    parser.add_argument(
        "--splits", type=int, default=2000, help="splits per run and number of rows"
    )
    parser.add_argument("--slow-splits", type=int, default=300, help="the same for slow metrics")
    parser.add_argument(
        "--rows", nargs="+", type=int, default=[0, 1000], help="as auto.rows; 0: the run's default"
    )
    parser.add_argument(
        "--parted", action="store_true", help="screening and test rows share no row"
    )
    parser.add_argument("--jobs", type=int, default=1, help="number of processes")
    options = parser.parse_args()
    cases = []
    for stored in read_all(options.file):
        fast = stored.scores[FULL].formula in _FAST
        splits = options.splits if fast else options.slow_splits
        for rows in options.rows:
            setting = setting_of(stored, rows, with_replacement=not options.parted)
            cases.append((stored, setting, splits))
    with ProcessPoolExecutor(options.jobs) as pool:
        outcomes = list(chain.from_iterable(pool.map(_replayed, cases)))
    show(outcomes)


def _replayed(case: tuple[Stored, Setting, int]) -> list[Outcome]:
    stored, setting, splits = case
    rows = setting.screening + setting.test
    say(f"{stored.task}, seed {stored.seed}, {rows} rows, {splits} splits ...")
    return replay(stored, setting, splits)


def setting_of(stored: Stored, rows: int, *, with_replacement: bool) -> Setting:
    """Return the setting for a value of `--rows`; 0: as many rows as the run itself held out."""
    screening, test = stored.planned
    if rows:
        screening, test = (len(part) for part in part_rows(rows, 0, screening=0.25))
    return Setting(screening, test, with_replacement)


def replay(stored: Stored, setting: Setting, splits: int) -> list[Outcome]:
    """Return the outcomes of all promises on the same splits."""
    pool = Pool(stored, setting)
    drawn = [pool.split(number) for number in range(splits)]
    usual = _promises(pool, drawn[0])
    least = sorted({d for d in pool.drops if d > _SMALLEST and pool.bound_method.may_pass(d)})
    outcomes = [outcome(pool, drawn, promise, n) for n, promise in enumerate(usual, 1)]
    return outcomes + [outcome(pool, drawn, promise, 0) for promise in least]


def _promises(pool: Pool, split: Split) -> list[float]:
    """Return the smallest promise that the test rows can be expected to certify, and its double."""
    smallest = pool.bound_method.smallest_drop
    if smallest is None:
        smallest = _smallest(pool.stored, len(split.test))
    first = math.ceil(smallest / _HALF) * _HALF
    return [first, 2 * first]


def _smallest(stored: Stored, tests: int) -> float:
    """Return the certifiable drop of the largest size that differs on enough rows for a bound."""
    full = stored.scores[FULL]
    for number in range(len(stored.sizes)):
        small = stored.scores[f"healed-{number}"]
        if tests * differing_rows(full, small) / len(full) >= FEWEST_DIFFERING:
            break
    known = statistic_of(full).beside(full, small, tests, CONFIDENCE)
    assert known is not None
    return known


def outcome(pool: Pool, drawn: Sequence[Split], promise: float, multiple: int) -> Outcome:
    """Return the outcome of one promise on all splits; `multiple` as in `Outcome`."""
    certified = broken = 0
    shares: list[float] = []
    ratios: list[float] = []
    certified_ratios: list[float] = []
    full, sizes = pool.stored.full[0], pool.stored.sizes
    for split in drawn:
        decision = pool.decide(split, promise)
        if not decision.certified:
            continue
        certified += 1
        drop = pool.drops[decision.size]
        # a least favourable promise equals a size's drop: to certify this size counts as an error
        broken += drop > promise if multiple else drop >= promise
        parameters = sizes[decision.size].healed[0]
        shares.append(parameters / full)
        if multiple and pool.stored.lora:
            ratios.append(parameters / _smallest_plain(pool, split, promise))
            certified_ratios.append(
                parameters / _smallest_plain(pool, split, promise, certified=True)
            )
    return Outcome(
        task=pool.stored.task,
        seed=pool.stored.seed,
        rows=pool.setting.screening + pool.setting.test,
        promise=promise,
        multiple=multiple,
        splits=len(drawn),
        certified=certified / len(drawn),
        broken=broken / len(drawn),
        share=float(np.median(shares)) if shares else math.nan,
        to_lora=mean_of(ratios),
        to_certified=mean_of(certified_ratios),
    )


def mean_of(ratios: Sequence[float]) -> float:
    """Return the geometric mean; NaN: there is nothing to average."""
    # geometric: half and double average to 1
    return float(np.exp(np.mean(np.log(ratios)))) if ratios else math.nan


def _smallest_plain(pool: Pool, split: Split, promise: float, *, certified: bool = False) -> int:
    """Return the parameters of the smallest plain rank that keeps the promise on the test rows.

    Args:
        certified: True: its bound must be within the promise; False: its drop.
    """
    for rank in RANKS:
        model = f"lora-{rank}"
        if certified:
            kept = pool.bound(model, split).keeps(promise)
        else:
            kept = pool.drop(model, split.test) <= promise
        if kept:
            return pool.stored.lora[model]
    return pool.stored.full[0]


def show(outcomes: Sequence[Outcome]) -> None:
    """Print three tables: by task and seed, by task over seeds, and least favourable promises."""
    usual = [one for one in outcomes if one.multiple]
    columns = "certified | broken | share of r 8 | / LoRA | / certified LoRA |"
    emit(f"| task | seed | rows | promise | {columns}")
    emit("| --- |" + " ---: |" * 8)
    for one in usual:
        emit(
            f"| {one.task} | {one.seed} | {one.rows:,} | {100 * one.promise:.1f} | "
            f"{one.certified:.1%} | {one.broken:.1%} | {one.share:.1%} | {one.to_lora:.2f} | "
            f"{one.to_certified:.2f} |"
        )
    emit(f"\n| task | seeds | rows | promises | {columns}")
    emit("| --- |" + " ---: |" * 8)
    for task, rows, multiple in dict.fromkeys((o.task, o.rows, o.multiple) for o in usual):
        emit(
            _over_seeds(
                [o for o in usual if (o.task, o.rows, o.multiple) == (task, rows, multiple)]
            )
        )
    emit("\n| task | rows | least favourable promises | broken, mean | largest | limit |")
    emit("| --- |" + " ---: |" * 5)
    least = [one for one in outcomes if not one.multiple]
    for task, rows in dict.fromkeys((one.task, one.rows) for one in least):
        group = [one for one in least if (one.task, one.rows) == (task, rows)]
        broken = [one.broken for one in group]
        limit = 1 - CONFIDENCE + 2 * group[0].error
        emit(
            f"| {task} | {rows:,} | {len(group)} | {np.mean(broken):.1%} | {max(broken):.1%} | "
            f"{limit:.1%} |"
        )


def _over_seeds(group: Sequence[Outcome]) -> str:
    """Return a line of the table over seeds.

    It has means of shares certified, geometric means of ratios, and the largest share broken.
    """
    some = [one for one in group if one.certified]
    promises = sorted({round(100 * one.promise, 1) for one in group})
    spread = f"{promises[0]:g}" + (f" to {promises[-1]:g}" if len(promises) > 1 else "")
    return (
        f"| {group[0].task} | {len(group)} | {group[0].rows:,} | {spread} | "
        f"{np.mean([one.certified for one in group]):.1%} | {max(o.broken for o in group):.1%} | "
        f"{np.median([o.share for o in some]) if some else math.nan:.1%} | "
        f"{mean_of([one.to_lora for one in some]):.2f} | "
        f"{mean_of([one.to_certified for one in some]):.2f} |"
    )


if __name__ == "__main__":
    main()
