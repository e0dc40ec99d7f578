"""Replay ways of choosing a learning rate on stored runs of a grid, and on stored trials.

    python -m tools.rates

Each way names one rate of the grid for each task and seed; its score is that of the run at this
rate. It loses points against the best rate of the grid, which is chosen on selection rows; scores
are those on reported rows. So a way may lose less than nothing. Where the score is a loss, a point
is one per cent of the best rate's loss. Candidates without a rate of the grid have runs of their
own, which are set beside the same best rates.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from sora_cli.core.console import emit
from sora_cli.core.table import Column, Table, emit_table
from sora_cli.experiments.compare.archive import read_lines
from sora_cli.experiments.compare.runs import Run, selection_score

RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
RUNS = Path("docs/results/rates.jsonl")
TRIALS = Path("docs/results/rate-trials.jsonl")
OTHERS = Path("docs/results/rate-others.jsonl")
LABELS = {"lora-r8", "cut-15"}
"""The runs of every task, over which ways are compared; the other methods have three tasks."""
_DRAWS = 10_000
_HORIZON = (
    0.32  # the best rate falls with the steps to this power (Bjorck et al., arXiv 2409.19913)
)


@dataclass(frozen=True)
class StoredTrial:
    """A stored trial: the losses of its steps, and those of `scored` rows in four blocks."""

    learning_rate: float
    steps: int
    losses: Sequence[float]
    held: Sequence[float]
    scored: int

    @property
    def loss(self) -> float:
        """Mean loss on the rows held out; infinite if any loss is not finite."""
        finite = np.isfinite([*self.losses, *self.held]).all()
        return float(np.mean(self.held)) if finite else math.inf

    @property
    def seen(self) -> float:
        """Mean training loss of the second half of the steps; infinite as `loss`."""
        half = self.losses[len(self.losses) // 2 :]
        return float(np.mean(half)) if np.isfinite(half).all() else math.inf


@dataclass
class Case:
    """One task and seed of the arena.

    Attributes:
        steps: of the whole run.
        scores: by label of the sweep, then rate: the scores on selection and on reported rows.
        trials: by number of steps.
    """

    task: str
    seed: int
    steps: int
    batch: int
    width: int
    sign: int
    scores: dict[str, dict[float, tuple[float, float]]] = field(default_factory=dict)
    trials: dict[int, list[StoredTrial]] = field(default_factory=dict)

    def lost(self, label: str, rate: float) -> float:
        """Return the points that a rate loses against the grid's best."""
        return self.behind(label, self.scores[label][rate][1])

    def behind(self, label: str, score: float) -> float:
        """Return the points by which a score on reported rows is behind the grid's best."""
        best = self.scores[label][self.best(label)][1]
        if self.sign < 0:  # a loss
            return 100 * (score / best - 1)
        return 100 * (best - score)

    def best(self, label: str) -> float:
        """Return the grid's best rate on selection rows; of equals, the smallest."""
        known = self.scores[label]
        return max(known, key=lambda r: (self.sign * known[r][0], -r))

    def tried(self, share: float) -> list[StoredTrial]:
        """Return the trials whose number of steps is nearest to a share of the run's."""
        steps = min(self.trials, key=lambda n: abs(n - share * self.steps))
        return self.trials[steps]


Way = Callable[[Case], float]


def on_grid(rate: float) -> float:
    """Return the rate of the grid that is nearest, by its logarithm; of two, the smaller."""
    return min(RATES, key=lambda r: (round(abs(math.log(r / rate)), 6), r))


def smallest_loss(share: float, power: float = 0.0, *, seen: bool = False) -> Way:
    """Take the rate with the smallest loss, times (steps of the trial / steps)^power."""

    def choose(case: Case) -> float:
        trials = case.tried(share)
        best = min(trials, key=lambda t: (t.seen if seen else t.loss, t.learning_rate))
        return on_grid(best.learning_rate * (best.steps / case.steps) ** power)

    return choose


def within_error(share: float, power: float = 0.0) -> Way:
    """Take the smallest rate whose loss is within one paired standard error of the smallest."""

    def choose(case: Case) -> float:
        trials = sorted(case.tried(share), key=lambda t: t.learning_rate)
        best = min(trials, key=lambda t: (t.loss, t.learning_rate))
        for trial in trials:
            worse = np.subtract(trial.held, best.held)
            error = float(worse.std(ddof=1)) / math.sqrt(len(worse))
            if trial is best or worse.mean() <= error:
                return on_grid(trial.learning_rate * (best.steps / case.steps) ** power)
        raise AssertionError

    return choose


def by_size(case: Case) -> float:
    """Take 1e-3 for models of up to 60 million parameters, else 5e-4: the rule until now."""
    return on_grid(1e-3 if case.width <= 384 else 5e-4)


def by_width(rate: float, power: float, horizon: float) -> Way:
    """Take rate * (384 / width)^power * (150 / steps)^horizon."""
    return lambda case: on_grid(rate * (384 / case.width) ** power * (150 / case.steps) ** horizon)


def ways() -> Iterator[tuple[str, float, Way]]:
    """Yield each way's name, the share of the steps of its trials, and the way."""
    for rate in RATES:
        yield f"always {rate:g}", 0.0, lambda _, rate=rate: rate  # type: ignore[misc]
    yield "1e-3, by size", 0.0, by_size
    yield "1e-3, by width", 0.0, by_width(1e-3, 0.78, 0)
    yield "1e-3, by width and steps", 0.0, by_width(1e-3, 0.78, _HORIZON)
    for share in (0.02, 0.04, 0.08, 0.16):
        yield f"smallest loss, {share:.0%}", share, smallest_loss(share)
        yield f"smallest loss, {share:.0%}, horizon", share, smallest_loss(share, _HORIZON)
        yield f"smallest training loss, {share:.0%}", share, smallest_loss(share, seen=True)
        yield f"smallest within error, {share:.0%}", share, within_error(share)
        yield f"smallest within error, {share:.0%}, horizon", share, within_error(share, _HORIZON)


def read_stored(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def read_cases(runs: Path, trials: Path) -> list[Case]:
    """Read the cases with a complete grid and with trials, which know the model's width."""
    cases: dict[tuple[str, int], Case] = {}
    widths: dict[str, int] = {}
    stored: dict[tuple[str, int], dict[int, list[StoredTrial]]] = defaultdict(dict)
    for one in read_stored(trials):
        widths[one["task"]] = one["width"]
        trial = StoredTrial(
            one["learning_rate"], one["steps"], one["losses"], one["held"], one["scored"]
        )
        stored[one["task"], one["seed"]].setdefault(one["steps"], []).append(trial)
    for directory, report in read_lines(runs, PurePath()):
        if isinstance(report, str):
            continue
        run = Run.of(directory, report)
        block = report.recipe["training"]
        task = f"{report.name}-long" if block["max_steps"] else report.name
        chosen = selection_score(report)
        if task not in widths or chosen is None:
            continue
        case = cases.setdefault(
            (task, run.seed),
            Case(
                task, run.seed, report.steps or 1, block["batch_size"], widths[task],
                1 if run.greater_is_better else -1,
            ),
        )  # fmt: skip
        scores = case.scores.setdefault(report.recipe["output"]["label"], {})
        scores[block["learning_rate"]] = (chosen, run.metric)
    for key, case in cases.items():
        case.scores = {m: s for m, s in case.scores.items() if s.keys() == set(RATES)}
        case.trials = {n: t for n, t in stored[key].items() if len(t) == len(RATES)}
    return [case for case in cases.values() if case.scores and case.trials]


def cost(case: Case, share: float) -> float:
    """Return the work of a way's trials, in runs: a step costs three forward passes a row."""
    if not share:
        return 0.0
    trials = case.tried(share)
    work = sum(3 * case.batch * trial.steps + trial.scored for trial in trials)
    return work / (3 * case.batch * case.steps)


def summary(losses: Mapping[str, Sequence[float]]) -> tuple[float, float, float, float]:
    """Return mean, interval (tasks drawn again) and the share of cases more than a point behind."""
    means = np.array([np.mean(values) for values in losses.values()])
    draws = np.random.default_rng(0).choice(means, (_DRAWS, len(means))).mean(axis=1)
    low, high = np.quantile(draws, [0.025, 0.975])
    behind = np.mean([value > 1 for values in losses.values() for value in values])
    return float(means.mean()), float(low), float(high), float(behind)


def main() -> None:
    """Print one table of all ways, and one of what each rate loses by task."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=Path, default=RUNS)
    parser.add_argument("--trials", type=Path, default=TRIALS)
    parser.add_argument("--others", type=Path, default=OTHERS)
    options = parser.parse_args()
    cases = read_cases(options.runs, options.trials)
    emit_table(_of_ways(cases))
    emit(f"{len(cases)} tasks and seeds; intervals: tasks drawn again, 95 %")
    emit_table(_of_rates(cases))
    emit_table(_of_others(cases, read_stored(options.others)))


def _of_ways(cases: Sequence[Case]) -> Table:
    rows = []
    for name, share, way in ways():
        losses: dict[str, list[float]] = defaultdict(list)
        for case in cases:
            for label in case.scores.keys() & LABELS:
                losses[case.task].append(case.lost(label, way(case)))
        spent = 1 + float(np.mean([cost(case, share) for case in cases]))
        rows.append([name, *summary(losses), spent])
    columns = (
        "way", Column("points lost", ".2f"), Column("from", ".2f"), Column("to", ".2f"),
        Column("over 1 behind", ".0%"), Column("runs", ".2f"),
    )  # fmt: skip
    return Table("all tasks", columns, rows)


def _of_rates(cases: Sequence[Case]) -> Table:
    rows = []
    for case in cases:
        for label in case.scores:
            lost = [case.lost(label, rate) for rate in RATES]
            rows.append([case.task, case.seed, label, f"{case.best(label):g}", *lost])
    heads = [Column(f"{rate:g}", ".1f") for rate in RATES]
    return Table("lost at each rate", ("task", "seed", "run", "best", *heads), rows)


def _of_others(cases: Sequence[Case], stored: Sequence[Mapping[str, Any]]) -> Table:
    """Set the candidates without a rate of the grid beside the best rate of plain LoRA."""
    known = {(case.task, case.seed): case for case in cases}
    rows = []
    for one in stored:
        case = known[one["task"], one["seed"]]
        lost = case.behind("lora-r8", one["validation"])
        lowered = ", ".join(map(str, one["lowered"]))
        rows.append([one["task"], one["seed"], one["candidate"], lost, lowered])
    columns = ("task", "seed", "candidate", Column("points lost", ".1f"), "lowered after step")
    return Table("other candidates, LoRA r 8", columns, rows)


if __name__ == "__main__":
    main()
