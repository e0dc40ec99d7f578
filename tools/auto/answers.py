"""Replay promises about answers: how often are they certified, at which size, and broken?

    python -m tools.auto.answers [--splits 2000] [--rows 2000 10000]
    python -m tools.auto.answers --beside-labels [--splits 200]

The pools are those of `tools.auto.synthetic`, the stored runs of two classes, and the runs of other
tasks whose answers are stored. With two classes the rows that differ by right or wrong are the rows
that are answered differently, so that stored scores serve as answers without labels. A quarter of
the rows, 500 at most, are screening rows, as in `sora auto`. Least favourable promises are each
equal to the share of answers that truly differ at one size. `--beside-labels` prints one table: the
smallest promises that most runs certify, by labels and by answers.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from sora_cli.core.console import emit, say
from sora_cli.recipe.tolerance import AGREEMENT
from sora_cli.tasks.row_scores import SAME, RowScores, row_scores
from tools.auto.decide import CONFIDENCE, Pool, Setting, Split
from tools.auto.replay import Outcome, mean_of, outcome, replay, setting_of
from tools.auto.stored import Stored, read_all
from tools.auto.synthetic import worse_sizes
from tools.auto.train import ANSWERS_FILE, FILE

TWO_CLASSES = ("sst2", "cola", "mrpc", "rte", "quickstart")
"""Stored tasks with two classes, by the beginning of their names."""
_PROMISES = (0.005, 0.01, 0.02, 0.04)
_LARGER = (0.08, 0.16)
_MOST_RUNS = 0.8
_MOST_SCREENING = 500
_POOL = 40_000


def main() -> None:
    """Replay least favourable promises on made pools, then usual ones on stored runs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--splits", type=int, default=2000, help="splits per run and promise")
    parser.add_argument("--rows", nargs="+", type=int, default=[2000, 10_000], help="of inputs")
    parser.add_argument("--beside-labels", action="store_true", help="compare with labelled rows")
    options = parser.parse_args()
    labelled = [*read_all(FILE)]
    runs = [_as_answers(one) for one in labelled if one.task.startswith(TWO_CLASSES)]
    runs += read_all(ANSWERS_FILE)
    if options.beside_labels:
        _show_beside_labels(labelled, runs, options.rows, options.splits)
        return
    emit("| pool | rows | promises | certified wrongly, mean | largest | limit |")
    emit("| --- |" + " ---: |" * 5)
    for name, stored in _pools():
        for rows in (300, 1000, 4000, 10_000):
            outcomes = _least_favourable(stored, rows, options.splits)
            if outcomes:
                emit(_least_line(name, rows, outcomes))
    emit("\n| task, seeds | pool | rows | promise | certified | broken, largest | share of r 8 |")
    emit("| --- |" + " ---: |" * 6)
    for task in dict.fromkeys(one.task for one in runs):
        group = [one for one in runs if one.task == task]
        for rows in options.rows:
            say(f"{task}, {rows} rows, {options.splits} splits ...")
            for promise in _PROMISES:
                emit(_usual_line(group, rows, promise, options.splits))
    emit("\n| task | rows | least favourable promises | broken, mean | largest | limit |")
    emit("| --- |" + " ---: |" * 5)
    for task in dict.fromkeys(one.task for one in runs):
        for rows in options.rows:
            least = [
                one
                for stored in runs
                if stored.task == task
                for one in _least_favourable(stored, rows, options.splits)
            ]
            if least:
                emit(_least_line(task, rows, least))


def _show_beside_labels(
    labelled: Sequence[Stored], runs: Sequence[Stored], rows: Sequence[int], splits: int
) -> None:
    """Print the smallest promises that most runs certify, as `_smallest` gives them, by task."""
    counts = [f"{number:,} rows without labels" for number in rows]
    emit(f"| task, seeds | labelled test rows | by them | {' | '.join(counts)} |")
    emit("| --- |" + " ---: |" * (2 + len(counts)))
    for task in dict.fromkeys(one.task for one in runs):
        group = [one for one in runs if one.task == task]
        seeds = {one.seed for one in group}
        own = [one for one in labelled if one.task == task and one.seed in seeds]
        by_labels = [setting_of(one, 0, with_replacement=True) for one in own]
        cells = [_smallest(own, by_labels, splits)]
        cells += [_smallest(group, [_setting(number)] * len(group), splits) for number in rows]
        emit(f"| {task}, {len(group)} | {own[0].planned[1]:,} | {' | '.join(cells)} |")


def _smallest(group: Sequence[Stored], settings: Sequence[Setting], splits: int) -> str:
    """Return the smallest usual promise that most runs certify, with their share and their size."""
    pools = [Pool(stored, setting) for stored, setting in zip(group, settings, strict=True)]
    drawn = [_draw(pool, splits) for pool in pools]
    for promise in (*_PROMISES, *_LARGER):
        outcomes = [
            outcome(pool, some, promise, 1) for pool, some in zip(pools, drawn, strict=True)
        ]
        certified = float(np.mean([one.certified for one in outcomes]))
        if certified >= _MOST_RUNS:
            size = mean_of([one.share for one in outcomes if one.certified])
            return f"{100 * promise:g}: {certified:.0%}, size {size:.0%}"
    return "none"


def _draw(pool: Pool, splits: int) -> list[Split]:
    # the rule that names sizes was chosen on splits below 1,000
    return [pool.split(1000 + number) for number in range(splits)]


def _setting(rows: int) -> Setting:
    screening = min(rows // 4, _MOST_SCREENING)
    return Setting(screening, rows - screening)


def _as_answers(stored: Stored) -> Stored:
    """Return a run of two classes with answers in place of its scores."""

    def answers(scores: RowScores) -> RowScores:
        # of right-or-wrong rows the only column; of Matthews' correlation the predicted class
        return RowScores(AGREEMENT, SAME, scores.parts[:, :1])

    return replace(
        stored,
        scores={name: answers(scores) for name, scores in stored.scores.items()},
        unhealed={name: answers(scores) for name, scores in stored.unhealed.items()},
    )


def _pools() -> Iterator[tuple[str, Stored]]:
    """Yield made pools: smaller sizes answer more rows differently, by exact counts."""
    for differing in (0.01, 0.04, 0.15):
        rng = np.random.default_rng(0)

        def worse(share: float, rng: np.random.Generator = rng) -> RowScores:
            other = np.zeros(_POOL)
            other[rng.permutation(_POOL)[: round(share * _POOL)]] = 1
            return row_scores(AGREEMENT, SAME, other)

        whole = row_scores(AGREEMENT, SAME, np.zeros(_POOL))
        yield f"answers, up to {differing:.0%} differ", worse_sizes(whole, worse, differing)


def _least_favourable(stored: Stored, rows: int, splits: int) -> list[Outcome]:
    return [one for one in replay(stored, _setting(rows), splits) if not one.multiple]


def _least_line(name: str, rows: int, outcomes: Sequence[Outcome]) -> str:
    broken = [one.broken for one in outcomes]
    limit = 1 - CONFIDENCE + 2 * outcomes[0].error
    return (
        f"| {name} | {rows:,} | {len(outcomes)} | {np.mean(broken):.1%} | {max(broken):.1%} | "
        f"{limit:.1%} |"
    )


def _usual_line(group: Sequence[Stored], rows: int, promise: float, splits: int) -> str:
    """Return the outcomes of one promise over all seeds of a task."""
    outcomes = []
    for stored in group:
        pool = Pool(stored, _setting(rows))
        outcomes.append(outcome(pool, _draw(pool, splits), promise, 1))
    certified = [one for one in outcomes if one.certified]
    broken = max(one.broken for one in outcomes)
    share = f"{mean_of([one.share for one in certified]):.1%}" if certified else ""
    sizes = sorted({one.rows for one in group})
    pools = f"{sizes[0]:,}" + (f" to {sizes[-1]:,}" if len(sizes) > 1 else "")
    return (
        f"| {group[0].task}, {len(group)} | {pools} | {rows:,} | {100 * promise:g} % | "
        f"{np.mean([one.certified for one in outcomes]):.1%} | {broken:.1%} | {share} |"
    )


if __name__ == "__main__":
    main()
