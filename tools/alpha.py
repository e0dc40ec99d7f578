"""What LoRA's alpha does that the learning rate does not: the tables of docs/results/alpha.md.

    python -m tools.alpha [RUNS...]

RUNS are directories of `recipes/sweeps/cpu/alpha.yaml`, `alpha-small.yaml` and `alpha-ranks.yaml`,
or of `alpha-long.yaml`; the default are the stored ones of the first three. Rates and alphas are
chosen on the rows held out of training, tasks apart; what is printed is the reported rows' score,
times 100. The other tables are the mean of both tasks at each alpha and rate, on the rows that
choose.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from benchmarks.measure import markdown
from sora_cli.core.console import emit
from sora_cli.experiments.compare.finding import find_runs
from sora_cli.experiments.compare.runs import Run, selection_score

RUNS = tuple(Path(f"docs/results/alpha.jsonl/cpu-alpha{kind}") for kind in ("", "-small", "-ranks"))
Place = tuple[float, float]
"""An alpha and a rate."""
Scores = Mapping[Place, tuple[float, float]]
"""By place: the score on the rows that choose, and on the reported rows; both times 100."""
Grid = Mapping[int, Mapping[str, Scores]]
"""By rank, then by task."""


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("runs", nargs="*", type=Path, default=RUNS)
    grid = read_grid(find_runs(parser.parse_args().runs).runs)
    emit(chosen_table(grid))
    for rank, tasks in grid.items():
        emit(f"\nr {rank}, mean of {', '.join(tasks)} on the rows that choose:\n")
        emit(mean_table(means(tasks)))


def read_grid(runs: Sequence[Run]) -> Grid:
    """Sort runs by rank, task, alpha and rate."""
    grid: dict[int, dict[str, dict[Place, tuple[float, float]]]] = defaultdict(dict)
    for run in runs:
        chosen = selection_score(run.report)
        assert chosen is not None
        place = run.settings["method.alpha"], run.settings["training.learning_rate"]
        scores = 100 * chosen, 100 * run.metric
        grid[run.settings["method.r"]].setdefault(run.task, {})[place] = scores
    return dict(sorted(grid.items()))


def best(scores: Scores, alpha: float | None = None) -> Place:
    """Return the place, of one alpha or of all, with the best score on the rows that choose."""
    places = [place for place in scores if alpha in (None, place[0])]
    return max(places, key=lambda place: scores[place][0])


def chosen_table(grid: Grid) -> str:
    """Return the reported score at the rate chosen for each alpha, and at the best of all."""
    alphas = sorted({alpha for tasks in grid.values() for s in tasks.values() for alpha, _ in s})
    rows = []
    for rank, tasks in grid.items():
        reported: dict[str, list[float]] = defaultdict(list)
        for task, scores in tasks.items():
            cells = []
            for alpha in alphas:
                if any(place[0] == alpha for place in scores):
                    _, rate = place = best(scores, alpha)
                    reported[f"{alpha:g}"].append(scores[place][1])
                    cells.append(f"{scores[place][1]:.2f} ({rate:g})")
                else:
                    cells.append("")
            alpha, rate = of_all = best(scores)
            reported["best"].append(scores[of_all][1])
            last = f"{scores[of_all][1]:.2f} ({alpha:g}, {rate:g})"
            rows.append([f"r {rank}", task, *cells, last])
        names = [*(f"{alpha:g}" for alpha in alphas), "best"]
        both = [
            f"{fmean(reported[n]):.2f}" if len(reported[n]) == len(tasks) else "" for n in names
        ]
        rows.append([f"r {rank}", "mean", *both])
    heads = [f"alpha {alpha:g} (rate)" for alpha in alphas]
    return markdown(["rank", "task", *heads, "best (alpha, rate)"], rows)


def means(tasks: Mapping[str, Scores]) -> dict[Place, float]:
    """Return the mean over tasks on the rows that choose, at each alpha and rate."""
    places = sorted(set.intersection(*(set(scores) for scores in tasks.values())))
    return {place: fmean(scores[place][0] for scores in tasks.values()) for place in places}


def mean_table(mean: Mapping[Place, float]) -> str:
    """Return means by alpha (rows) and rate (columns)."""
    rates = sorted({rate for _, rate in mean})
    alphas = sorted({alpha for alpha, _ in mean})
    rows = [[f"{a:g}", *(f"{mean[a, r]:.1f}" if (a, r) in mean else "" for r in rates)]
            for a in alphas]  # fmt: skip
    return markdown(["alpha", *(f"{rate:g}" for rate in rates)], rows)


if __name__ == "__main__":
    main()
