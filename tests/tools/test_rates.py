"""Ways of choosing a rate: what they take of given trials, and what that loses on a given grid."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from tools.rates import (
    RATES,
    Case,
    StoredTrial,
    by_width,
    cost,
    on_grid,
    read_cases,
    smallest_loss,
    summary,
    within_error,
)

SCORES = {1e-4: (0.5, 0.52), 3e-4: (0.7, 0.69), 1e-3: (0.8, 0.78), 3e-3: (0.8, 0.81), 1e-2: (0, 0)}


def trial(rate: float, *held: float, losses: tuple[float, ...] = (1.0, 0.9)) -> StoredTrial:
    return StoredTrial(rate, 15, losses, held, 160)


def case(*trials: StoredTrial, steps: int = 150, width: int = 384) -> Case:
    return Case("t", 0, steps, 16, width, 1, {"lora": SCORES}, {15: list(trials)})


def test_points_are_lost_against_the_best_on_selection_rows() -> None:
    known = case()
    assert known.lost("lora", 3e-4) == pytest.approx(9)  # of two best ones the smaller rate
    assert known.lost("lora", 1e-3) == 0
    assert known.lost("lora", 3e-3) == pytest.approx(-3)


def test_points_of_a_loss_are_per_cents_of_the_best_rates() -> None:
    grid = {1e-4: (2.0, 2.1), 3e-4: (1.8, 2.0), 1e-3: (1.9, 1.9)}
    known = Case("t", 0, 48, 8, 576, -1, {"lora": grid}, {})
    assert known.best("lora") == 3e-4
    assert known.lost("lora", 1e-4) == pytest.approx(5)
    assert known.lost("lora", 1e-3) == pytest.approx(-5)
    assert known.behind("lora", 2.02) == pytest.approx(1)


@pytest.mark.parametrize(
    ("rate", "near"), [(1e-5, 1e-4), (5e-4, 3e-4), (6e-4, 1e-3), (1.7e-3, 1e-3), (1, 1e-2)]
)
def test_the_nearest_rate_of_the_grid(rate: float, near: float) -> None:
    assert on_grid(rate) == near


def test_the_smallest_loss_and_its_horizon() -> None:
    tried = [trial(1e-4, 0.9, 0.9), trial(1e-3, 0.7, 0.7), trial(3e-3, 0.6, 0.6)]
    assert smallest_loss(0.1)(case(*tried)) == 3e-3
    assert smallest_loss(0.1, 0.32)(case(*tried)) == 1e-3  # 3e-3 * 0.1^0.32 = 1.4e-3
    spoilt = trial(3e-3, 0.6, 0.6, losses=(1.0, math.nan))
    assert smallest_loss(0.1)(case(*tried[:2], spoilt)) == 1e-3
    falls = trial(1e-4, 0.9, 0.9, losses=(1.0, 0.1))
    assert smallest_loss(0.1, seen=True)(case(falls, *tried[1:])) == 1e-4


def test_the_smallest_rate_within_the_error() -> None:
    near, best = trial(3e-4, 0.72, 0.69, 0.71, 0.7), trial(1e-3, 0.7, 0.7, 0.7, 0.7)
    far = trial(1e-4, 0.9, 0.8, 0.85, 0.88)
    assert within_error(0.1)(case(best, near, far)) == 3e-4
    assert within_error(0.1)(case(best, far)) == 1e-3


def test_a_rule_of_width_and_steps() -> None:
    rule = by_width(1e-3, 0.78, 0.32)
    assert rule(case()) == 1e-3
    assert rule(case(width=64)) == 3e-3
    assert rule(case(steps=10_000)) == 3e-4


def test_the_work_of_trials() -> None:
    tried = [trial(rate, 0.5) for rate in RATES]
    assert cost(case(*tried), 0.0) == 0
    assert cost(case(*tried), 0.1) == pytest.approx((5 * 15 * 48 + 5 * 160) / (150 * 48))


def test_tasks_weigh_the_same() -> None:
    mean, low, high, behind = summary({"a": [0.0, 0.0, 0.0], "b": [4.0]})
    assert (mean, behind) == (2, 0.25)
    assert (low, high) == (0, 4)


def test_only_whole_grids_are_read(tmp_path: Path) -> None:
    trials, runs = tmp_path / "trials.jsonl", tmp_path / "runs.jsonl"
    one = {
        "task": "sst2",
        "seed": 0,
        "width": 384,
        "steps": 15,
        "losses": [1.0],
        "held": [0.5],
        "scored": 9,
    }
    trials.write_text("".join(json.dumps({**one, "learning_rate": r}) + "\n" for r in RATES))
    lines = []
    for number, rate in enumerate(RATES):
        block = {"learning_rate": rate, "max_steps": None, "batch_size": 16, "seed": 0}
        for method in ("lora", "cut")[: 1 if number == 4 else 2]:  # the cut lacks a rate
            recipe = {"training": block, "method": {"name": method}, "data": {}, "task": {}}
            recipe["output"] = {"label": method}
            scores = {"metrics": {"validation": {"accuracy": rate}}, "main_metric": "accuracy"}
            last = [{"step": 150, "eval_accuracy": rate}]
            line = {"directory": f"{method}-{rate}", "name": "sst2", "recipe": recipe, **scores}
            lines.append(json.dumps({**line, "history": last, "steps": 150, "status": "completed"}))
    runs.write_text("\n".join(lines) + "\n")
    (known,) = read_cases(runs, trials)
    assert (known.task, known.steps, list(known.scores)) == ("sst2", 150, ["lora"])
    assert known.lost("lora", 1e-4) == pytest.approx(0.99)
