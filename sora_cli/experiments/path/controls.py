"""Controls of a path: remove components from stage 0 by other rules, and score the result.

For each stage, as many components are removed from stage 0's adapter as the path had lost by then,
and the adapter is scored without further training. The components are drawn at random, or have the
smallest norms, or are the very components that the path had lost. The last rule is left out if the
method turns the basis: component i of a later stage is then not component i of stage 0.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence

import torch

from sora_cli.experiments.path.record import ControlPoint, Controls, PathReport, Stage
from sora_cli.experiments.path.stages import Stages
from sora_cli.train.trainer import AdapterTrainer, build_scorer

DRAWS = 5  # random draws per stage; their mean is compared with the path
FALL = 0.9  # share of stage 0's metric below which a curve has clearly fallen
_PATHS = "path's choice"
RULES = {
    _PATHS: "the components the path had lost by that stage",
    "smallest norm": "the components with the smallest |b_i| |a_i|, over all layers",
    "chance": "components drawn at random",
}
Component = tuple[str, int]
"""Module path of the layer, and the component's number in it."""


def run_controls(stages: Stages, say: Callable[[str], None]) -> Controls:
    """Score stage 0 without some components, by each rule; the model ends in stage 0's state."""
    stages.restore(0)
    report, first = stages.report, stages.report.stages[0]
    everything = _components(first.alive)
    by_norm = _by_norm(stages, everything)
    turns_basis = stages.ready.method.config.turns_basis
    rules = {k: v for k, v in RULES.items() if k != _PATHS or not turns_basis}
    seed = int(stages.plans[0].recipe.training.seed)
    # one order per draw for all stages: each stage then removes the former stage's components and
    # more, as a path does; no two seeds share a draw
    draws = [_shuffled(everything, seed * DRAWS + draw) for draw in range(DRAWS)]
    ready = stages.ready
    trainer = build_scorer(stages.plans[0].recipe, ready.task, ready.base)

    def without(components: Sequence[Component]) -> float:
        return _score_without(stages, trainer, components)

    floor = without(everything)
    points = []
    for stage in report.stages[1:]:
        dead = sorted(set(everything) - set(_components(stage.alive)))
        # in a turned basis the components are others: only their number can be compared
        removed = first.live - stage.live if turns_basis else len(dead)
        share = f"{removed} of {len(everything)} components"
        say(f"controls for stage {stage.index}: {share} removed ...")
        if removed:
            scores = {} if turns_basis else {_PATHS: [without(dead)]}
            scores |= {
                "smallest norm": [without(by_norm[:removed])],
                "chance": [without(draw[:removed]) for draw in draws],
            }
        else:
            scores = {rule: [report.score(first, report.generalisation)] for rule in rules}
        points.append(_point(report, stage, removed, scores))
    return _conclude(report, points, floor, rules)


def _point(
    report: PathReport, stage: Stage, removed: int, scores: Mapping[str, list[float]]
) -> ControlPoint:
    split = report.generalisation
    relative = {rule: report.ratio(statistics.fmean(s), split) for rule, s in scores.items()}
    return ControlPoint(stage=stage.index, removed=removed, scores=dict(scores), relative=relative)


def _components(alive: Mapping[str, list[int]]) -> list[Component]:
    return [(path, i) for path, indices in alive.items() for i in indices]


def _by_norm(stages: Stages, components: Sequence[Component]) -> list[Component]:
    """Sort components by norm, from the smallest to the largest."""
    norms = {path: factors.component_norms().tolist() for path, factors in stages.factors().items()}
    return sorted(components, key=lambda component: norms[component[0]][component[1]])


def _shuffled(components: Sequence[Component], seed: int) -> list[Component]:
    order = torch.randperm(len(components), generator=torch.Generator().manual_seed(seed))
    return [components[i] for i in order.tolist()]


@torch.no_grad()
def _score_without(
    stages: Stages, trainer: AdapterTrainer, components: Sequence[Component]
) -> float:
    """Return the main metric with these components set to zero; restore them afterwards."""
    ready, report = stages.ready, stages.report
    # zeroing b_i removes b_i a_i without changing any shape
    kept = {path: layer.B.clone() for path, layer in ready.layers.items()}
    for path, i in components:
        ready.layers[path].B[:, i] = 0
    rows, metric = ready.report[report.generalisation], report.main_metric
    predictions = trainer.predictions_of(rows, [metric])
    for path, layer in ready.layers.items():
        layer.B.copy_(kept[path])
    return float(ready.task.scores(predictions)[metric])


def _conclude(
    report: PathReport, points: list[ControlPoint], floor: float, rules: dict[str, str]
) -> Controls:
    split = report.generalisation
    stages = report.stages[1:]
    gap = {
        rule: statistics.fmean(
            abs(p.relative[rule] - s.relative[split]) for p, s in zip(points, stages, strict=True)
        )
        for rule in rules
    }
    curves = {rule: [p.relative[rule] for p in points] for rule in rules}
    curves["path"] = [s.relative[split] for s in stages]
    falls = {rule: _fall(stages, curve, report) for rule, curve in curves.items()}
    return Controls(
        rules=rules,
        draws=DRAWS,
        floor=floor,
        points=points,
        gap=gap,
        falls_at=falls,
        verdict=_verdict(gap, falls),
    )


def _fall(stages: Sequence[Stage], curve: Sequence[float], report: PathReport) -> float | None:
    """Return the share alive at the first stage clearly worse than stage 0; None: no such stage."""
    for stage, relative in zip(stages, curve, strict=True):
        worse = relative < FALL if report.greater_is_better else relative > 1 / FALL
        if worse:
            return stage.share
    return None


def _verdict(gap: Mapping[str, float], falls: Mapping[str, float | None]) -> str:
    """Return one sentence: the rule closest to the path, and the share at which each falls."""
    if any(math.isnan(value) for value in gap.values()):
        return "no relative metric: stage 0's metric is not above zero"
    ranked = sorted(gap, key=lambda rule: gap[rule])
    closeness = ", ".join(f"{rule} {gap[rule]:.3f}" for rule in ranked)
    places = ", ".join(
        f"{rule} " + ("not at all" if at is None else f"at {at:.0%} alive")
        for rule, at in falls.items()
    )
    return (
        f"closest to the path is removal by {ranked[0]} (mean gap: {closeness}); "
        f"below {FALL:.0%} of stage 0: {places}"
    )
