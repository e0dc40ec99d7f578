"""Replay promises whose labels are asked for: how often certified, by how many labels, broken?

    python -m tools.auto.asked [--splits 1000] [--screenings 2] [--seeds 0 1] [--ask-all]
    python -m tools.auto.asked --table [--splits 200] [--rows 0 10000] [--ask-all]

Without an option it replays least favourable promises, each equal to the true drop of one size: on
pools that are made to break them, and on the stored runs whose rows are right or wrong (CoLA by
accuracy). The truth of the pool labels the rows that are asked: all of them, a random half, or only
those on which the small model is right. Rows are drawn with replacement, so that the pool is what a
promise is about. Screening rows are drawn `--screenings` times, and test rows often for each of
these draws: the plan of the rows takes most of the time. `--table` prints, for two, one and half
a point, the labels that are asked and the sizes that are certified, beside promises by labels alone
and by answers alone. Labels are asked for size by size, or with `--ask-all` for all sizes at once.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from sora_cli.core.console import emit, say
from sora_cli.search.asked_labels import bound_of, counted
from sora_cli.search.asked_search import planned_rows
from sora_cli.search.evidence import Screened
from sora_cli.search.promise import LABELS, Promise
from sora_cli.search.screening import name_sizes
from sora_cli.search.statistic import Labelled
from sora_cli.tasks.row_scores import UNLABELLED, RowScores
from tools.auto.asked_runs import RIGHT, Case, cases, pools
from tools.auto.decide import CONFIDENCE, SIZES, Pool, Setting
from tools.auto.replay import mean_of, outcome, setting_of
from tools.auto.stored import FULL, Stored

PROMISES = (0.02, 0.01, 0.005)
_UNION = 3  # sizes whose rows are labelled together, of least favourable promises
_MOST_SCREENING = 500

Fill = Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray]
"""Takes true labels (rows,), and where full rank is right; returns the labels that people give."""


class Verdicts:
    """Which counts keep a promise on a number of rows; few exact bounds are computed."""

    def __init__(self, rows: int, max_drop: float) -> None:
        self.rows, self.max_drop = rows, max_drop
        self._known: dict[tuple[int, int], tuple[int, int]] = {}

    def keeps(self, counts: Labelled) -> bool:
        """Return True if the bound of these counts is within the promise."""
        unknown = counts.missing + counts.disagree
        lost = counts.lost + unknown
        if (lost - counts.won) / self.rows >= self.max_drop:  # no bound is below the drop itself
            return False
        # one way to fill in labels is that all are lost: no bound without labels is below that one
        if unknown and not self._keeps(Labelled(lost=lost, won=counts.won, neither=0, missing=0)):
            return False
        return self._keeps(counts)

    def state(self, counts: Labelled) -> str:
        """Return what a test is, as in `AskedSearch`: kept, open or failed."""
        if self.keeps(counts):
            return "kept"
        best = counts.model_copy(update={"won": counts.won + counts.missing, "missing": 0})
        return "open" if counts.missing and self.keeps(best) else "failed"

    def _keeps(self, counts: Labelled) -> bool:
        key = counts.won, counts.missing + counts.disagree
        # more lost rows, the others as they are: a larger region for the same p_won
        kept, broken = self._known.get(key, (-1, self.rows + 1))
        if kept < counts.lost < broken:
            if bound_of(counts, self.rows, CONFIDENCE) <= self.max_drop:
                kept = counts.lost
            else:
                broken = counts.lost
            self._known[key] = kept, broken
        return counts.lost <= kept


@dataclass(frozen=True)
class Decision:
    """The outcome of one run.

    Attributes:
        size: index of the certified size; None: none was certified.
        asked: number of rows to label; None: even the largest size takes too many, none is asked.
        rows: number of test rows.
    """

    size: int | None
    asked: int | None
    rows: int


class AskedPool(Pool):
    """A pool that decides by labels of the rows on which models differ.

    Args:
        stored: its scores are of `ASKED`, with the true labels.
        rows: rows without labels: screening rows, and those that may test.
        sizes: the largest number of sizes to train.
        ask_all: ask for the labels of all sizes at once.
    """

    def __init__(self, stored: Stored, rows: int, sizes: int, *, ask_all: bool = False) -> None:
        unhealed = {
            name: _with(scores, np.full(len(scores), UNLABELLED))
            for name, scores in stored.unhealed.items()
        }
        # nobody labels screening rows: every row that differs counts
        super().__init__(replace(stored, unhealed=unhealed), setting_for(rows))
        self.sizes, self.ask_all = sizes, ask_all
        self._verdicts: dict[tuple[int, float], Verdicts] = {}

    def drop(self, model: str, rows: np.ndarray | None = None) -> float:
        """Return the true drop; with labels of one person, `AskedLabels` may count more as lost."""
        full, small = (self.stored.scores[name].parts[:, 0] == RIGHT for name in (FULL, model))
        lost = full.astype(float) - small
        return float(lost.mean() if rows is None else lost[rows].mean())

    def screened(self, number: int) -> list[Screened]:
        """Return the screening results of a draw of screening rows."""
        rng = np.random.default_rng((self.stored.seed, number))
        return self._screened(rng.integers(self.stored.screening, size=self.setting.screening))

    def plan(self, screened: Sequence[Screened], max_drop: float) -> list[int]:
        """Return the sizes to train and, as the last number, how many rows test them."""
        named = name_sizes(
            screened, self._full, max_drop, self.sizes, None, self._statistic,
            tested=self.bound_method.may_pass(max_drop),
        )  # fmt: skip
        sizes = [screened[place].model_copy(update={"named": True}) for place in named]
        about = promise_of(max_drop)
        most, screening = self.setting.test, self.setting.screening
        return [*named, planned_rows(sizes, screening, about, most, all_lost=True)]

    def test(
        self, plan: Sequence[int], max_drop: float, draw: Sequence[int], fills: Sequence[Fill]
    ) -> list[Decision]:
        """Return the outcome of a draw of test rows for each way to fill in; `draw` seeds it."""
        *named, rows = plan
        rng = np.random.default_rng((self.stored.seed, *draw))
        drawn = rng.integers(self.stored.rows, size=rows)
        full = self.stored.scores[FULL].take(drawn)
        verdicts = self._verdicts.setdefault((rows, max_drop), Verdicts(rows, max_drop))
        models = [(number, self.stored.scores[f"healed-{number}"].take(drawn)) for number in named]
        truth = full.parts[:, 1]
        found = []
        for fill in fills:
            labels = fill(truth, full.parts[:, 0] == truth, rng)
            entered, asks = self._entered(models, full, labels, verdicts)
            passed = None
            for number, small in entered:
                if not verdicts.keeps(_counted(full, small, labels, asks)):
                    break
                passed = number
            found.append(Decision(passed, int(asks.sum()) if entered else None, rows))
        return found

    def _entered(
        self,
        models: Sequence[tuple[int, RowScores]],
        full: RowScores,
        labels: np.ndarray,
        verdicts: Verdicts,
    ) -> tuple[list[tuple[int, RowScores]], np.ndarray]:
        """Return the sizes that go in, as in `AskedSearch`, and the rows that are asked."""
        entered, asked = list[tuple[int, RowScores]](), np.zeros(len(full), dtype=bool)
        for number, small in models:
            known = np.zeros_like(asked) if self.ask_all else asked
            counts = _counted(full, small, labels, known)
            state = verdicts.state(counts)
            more = asked | full.differs(small) if state == "open" else asked
            if more.sum() > LABELS:
                break
            entered, asked = [*entered, (number, small)], more
            if state == "open" and not self.ask_all:
                state = verdicts.state(_counted(full, small, labels, asked))
            if state == "failed" or (state == "open" and not self.ask_all):
                break
        return entered, asked


def setting_for(rows: int) -> Setting:
    """Return how many rows without labels screen, and how many may test."""
    screening = min(rows // 4, _MOST_SCREENING)
    return Setting(screening, rows - screening)


def promise_of(max_drop: float) -> Promise:
    """Return a promise that is tested by asked labels."""
    return Promise(
        basis="asked", labels=LABELS, max_drop=max_drop, given=f"{max_drop:g}",
        confidence=CONFIDENCE, metric="accuracy", greater_is_better=True, serve=None,
    )  # fmt: skip


def _counted(full: RowScores, small: RowScores, labels: np.ndarray, asked: np.ndarray) -> Labelled:
    """Count the rows that differ by the labels of those that are asked."""
    given = np.where(asked, labels, UNLABELLED)
    return counted(_with(full, given), _with(small, given))


def _with(scores: RowScores, labels: np.ndarray) -> RowScores:
    none = np.full(len(labels), UNLABELLED)
    return replace(scores, parts=np.stack([scores.parts[:, 0], labels, none], axis=1))


def _all(truth: np.ndarray, right: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    del right, rng
    return truth


def _half(truth: np.ndarray, right: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    del right
    return np.where(rng.random(len(truth)) < 0.5, truth, UNLABELLED)


def _none_lost(truth: np.ndarray, right: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    del rng
    return np.where(right, UNLABELLED, truth)


FILLS: Mapping[str, Fill] = {"all": _all, "half": _half, "none that is lost": _none_lost}
"""Ways to fill in the table: all labels, a random half, or only those that full rank got wrong."""


def broken(pool: AskedPool, screenings: int, splits: int) -> Iterator[list[float]]:
    """Yield how often least favourable promises are broken, for each of `FILLS`."""
    screened = [pool.screened(number) for number in range(screenings)]
    for promise in _least_favourable(pool):
        times = np.zeros(len(FILLS))
        for number, sizes in enumerate(screened):
            plan = pool.plan(sizes, promise)
            for split in range(splits // screenings):
                found = pool.test(plan, promise, (number, split), [*FILLS.values()])
                # a size whose drop equals the promise must not be certified, either
                times += [f.size is not None and pool.drops[f.size] >= promise for f in found]
        yield list(times / splits)


def _least_favourable(pool: AskedPool) -> list[float]:
    """Return the drops of the two sizes that are nearest to the usual promises."""
    able = [drop for drop in pool.drops if drop > 0 and pool.bound_method.may_pass(drop)]
    return sorted({min(able, key=lambda drop: abs(drop - usual)) for usual in PROMISES if able})


def alone(pool: AskedPool, splits: int) -> Iterator[tuple[float, int, float]]:
    """Yield least favourable promises with test rows, and how often their size passes alone."""
    for promise in _least_favourable(pool):
        number = pool.drops.index(promise)
        full, small = (pool.stored.scores[name] for name in (FULL, f"healed-{number}"))
        # about 45 rows differ: seldom more than may be labelled
        rows = min(pool.setting.test, int(0.75 * LABELS / full.differs(small).mean()))
        found = [
            pool.test([number, rows], promise, (split,), [_all])[0].size for split in range(splits)
        ]
        yield promise, rows, sum(size is not None for size in found) / splits


def main() -> None:
    """Replay least favourable promises, or print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--splits", type=int, default=1000, help="splits per pool and promise")
    parser.add_argument("--screenings", type=int, default=2, help="draws of screening rows")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="of the stored runs")
    parser.add_argument(
        "--rows", nargs="+", type=int, default=[0, 10_000], help="0: as many as the pool has"
    )
    parser.add_argument("--pools", nargs="+", default=[""], help="those that begin with a name")
    parser.add_argument("--alone", action="store_true", help="test each such size alone, instead")
    parser.add_argument("--ask-all", action="store_true", help="ask for all sizes at once")
    parser.add_argument("--table", action="store_true", help="print what is asked and certified")
    options = parser.parse_args()
    if options.table:
        _show_table(options)
    elif options.alone:
        _show_alone(options)
    else:
        _show_broken(options)


def _show_broken(options: argparse.Namespace) -> None:
    emit(
        f"| pool | rows | promises | {' | '.join(f'{name} filled in' for name in FILLS)} | limit |"
    )
    emit("| --- |" + " ---: |" * (3 + len(FILLS)))
    limit = _limit(options.splits)
    for name, stored, rows in _pools(options):
        say(f"{name}, {rows} rows ...")
        pool = AskedPool(stored, rows, _UNION, ask_all=options.ask_all)
        shares = np.array([*broken(pool, options.screenings, options.splits)])
        if not len(shares):  # the rows can certify no drop of a size at all
            continue
        promised = ", ".join(f"{100 * drop:.2f}" for drop in _least_favourable(pool))
        cells = " | ".join(f"{share:.1%}" for share in shares.max(axis=0))
        emit(f"| {name} | {rows:,} | {promised} | {cells} | {limit:.1%} |")


def _show_alone(options: argparse.Namespace) -> None:
    emit("| pool | promise | test rows | certified wrongly | limit |\n| --- |" + " ---: |" * 4)
    for name, stored, rows in _pools(options):
        say(f"{name}, {rows} rows ...")
        for promise, tested, share in alone(AskedPool(stored, rows, _UNION), options.splits):
            limit = _limit(options.splits)
            emit(f"| {name} | {100 * promise:.2f} | {tested:,} | {share:.1%} | {limit:.1%} |")


def _pools(options: argparse.Namespace) -> Iterator[tuple[str, Stored, int]]:
    """Yield the pools that are asked for, made ones first, with their numbers of rows."""
    found = [(name, stored, rows) for name, stored in pools() for rows in options.rows if rows]
    real = (one.by_asking for one in cases(options.seeds) if 0 in options.rows)
    found += [(f"{one.task}, seed {one.seed}", one, one.rows) for one in real]
    yield from (one for one in found if one[0].startswith(tuple(options.pools)))


def _limit(splits: int) -> float:
    """Return the share of broken promises that chance explains: two Monte-Carlo errors above."""
    return 1 - CONFIDENCE + 2 * math.sqrt(CONFIDENCE * (1 - CONFIDENCE) / splits)


def _show_table(options: argparse.Namespace) -> None:
    emit(
        "| task, seeds | rows | promise | not asked | labels, median | largest | certified | "
        "by labels | by answers |"
    )
    emit("| --- |" + " ---: |" * 8)
    runs = [
        one for one in cases(options.seeds) if one.by_asking.task.startswith(tuple(options.pools))
    ]
    for task in dict.fromkeys(one.by_asking.task for one in runs):
        group = [one for one in runs if one.by_asking.task == task]
        for rows in options.rows:
            _show_lines(group, rows, options)


def _show_lines(group: Sequence[Case], rows: int, options: argparse.Namespace) -> None:
    """Print a line for each promise: what is asked, and which sizes are certified how often."""
    found: dict[float, list[tuple[Decision, Stored]]] = {promise: [] for promise in PROMISES}
    draws, each = options.screenings, options.splits // options.screenings
    for one in group:
        stored = one.by_asking
        pool = AskedPool(stored, rows or stored.rows, SIZES, ask_all=options.ask_all)
        say(f"{stored.task}, seed {stored.seed}, {rows or stored.rows} rows ...")
        for draw, screened in enumerate(map(pool.screened, range(draws))):
            for promise in PROMISES:
                plan = pool.plan(screened, promise)
                for split in range(each):
                    (decision,) = pool.test(plan, promise, (draw, split), [_all])
                    found[promise].append((decision, stored))
    numbers = sorted({rows or one.by_asking.rows for one in group})
    for promise, decisions in found.items():
        labels = [decision.asked for decision, _ in decisions if decision.asked is not None]
        sizes = [s.sizes[d.size].healed[0] / s.full[0] for d, s in decisions if d.size is not None]
        settings = [setting_of(one.by_labels, 0, with_replacement=True) for one in group]
        alone = _certified([one.by_labels for one in group], settings, promise, each * draws)
        settings = [setting_for(rows or one.by_asking.rows) for one in group]
        answers = _certified([one.by_answers for one in group], settings, promise, each * draws)
        asks = f"{np.median(labels):.0f} | {max(labels)}" if labels else " | "
        emit(
            f"| {group[0].by_asking.task}, {len(group)} | {' to '.join(f'{n:,}' for n in numbers)} "
            f"| {100 * promise:g} | {1 - len(labels) / len(decisions):.0%} | {asks} | "
            f"{_share(len(sizes) / len(decisions), sizes)} | {alone} | {answers} |"
        )


def _certified(
    group: Sequence[Stored], settings: Sequence[Setting], promise: float, splits: int
) -> str:
    """Return how often a promise is certified without asked labels, and at which size."""
    found = []
    for stored, setting in zip(group, settings, strict=True):
        pool = Pool(stored, setting)
        found.append(outcome(pool, [pool.split(n) for n in range(splits)], promise, 1))
    certified = float(np.mean([one.certified for one in found]))
    return _share(certified, [one.share for one in found if one.certified])


def _share(certified: float, sizes: Sequence[float]) -> str:
    return f"{certified:.0%}" + (f", size {mean_of(sizes):.0%}" if sizes else "")


if __name__ == "__main__":
    main()
