"""The headline of a run's page: scores, size, method, base model, task, time and memory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sora_cli.adapter.ranks import Rank
from sora_cli.core.console import count, size
from sora_cli.experiments.compare.runs import Run
from sora_cli.report import Report, RunReport


@dataclass(frozen=True)
class Fact:
    """A fact of the headline: name, value and a line with details."""

    name: str
    value: str
    about: str = ""


@dataclass(frozen=True)
class Phase:
    """A phase of the run; `share` is its time in per cent of the longest phase."""

    name: str
    seconds: str
    share: int


def headline(run: Run) -> list[Fact]:
    """Return the known facts of a training run."""
    report = run.report
    return [
        *_scores(run),
        *_sizes(report, run.ranks.total),
        _method(report.recipe, report.start.sentence() if report.start else ""),
        *_rate(report),
        _base(report),
        _data(report),
        *_cost(report),
    ]


def title(run: Run) -> str:
    """Return the title of the page: the run's name and its score."""
    report = run.report
    name = run.label or report.name
    if not report.metrics or report.main_metric not in run.scores:
        return f"{name}: no score"
    return f"{name}: {report.main_metric} {number(run.metric)} on {run.split}"


def number(value: float) -> str:
    """Format a score with four decimals, like the summary of `sora train`."""
    return "not a number" if math.isnan(value) else f"{value:.4f}"


def phases(seconds: Mapping[str, float]) -> list[Phase]:
    """Return the phases of a run in their order."""
    longest = max(seconds.values(), default=0.0) or 1.0
    return [Phase(n, duration(s), round(100 * s / longest)) for n, s in seconds.items()]


def duration(seconds: float) -> str:
    """Format a duration: "27.4 s", "12 min 5 s", "3 h 20 min"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def _scores(run: Run) -> list[Fact]:
    """Return the scores by split; the split in the title comes first."""
    report, facts = run.report, []
    rows = report.data.rows
    splits = sorted(report.metrics, key=lambda split: split != run.split)
    for split in splits:
        scores = report.metrics[split]
        on = f"on {split}" + (f", {count(rows[split])} rows" if split in rows else "")
        main = report.main_metric if report.main_metric in scores else next(iter(scores), None)
        if main is None:
            continue
        others = ", ".join(f"{n} {number(v)}" for n, v in scores.items() if n != main)
        without = report.without_adapters.get(split)
        lines = [on, others, "" if without is None else f"{number(without)} without the adapter"]
        facts.append(Fact(main, number(scores[main]), "; ".join(filter(None, lines))))
    return facts


def _sizes(report: RunReport, kept: Rank) -> list[Fact]:
    p = report.parameters
    base = max(p.base - p.head, 0)  # the report counts the head, too, as part of the base model
    of_base = f"{p.adapter_end / base:.2%} of the base model's {count(base)}" if base else ""
    head = f"and {count(p.head)} in the head" if p.head else ""
    if not kept.start:
        about = "; ".join(filter(None, [of_base, head]))
        return [Fact("trained parameters", count(p.adapter_end), about)]
    start = f"of {count(p.adapter_start)} at this run's start"
    if p.adapter_start:
        start += f" ({p.adapter_end / p.adapter_start:.0%})"
    dead = sum(m.end == 0 for m in report.ranks.values())
    of = f"of {count(kept.start)}, in {len(report.ranks)} layers"
    return [
        Fact("kept", f"{kept.live / kept.start:.0%}",
             f"{count(kept.live)} components {of}" + (f", {dead} of them empty" * bool(dead))),
        Fact("adapter parameters", count(p.adapter_end),
             "; ".join(filter(None, [start, of_base, head]))),
    ]  # fmt: skip


def _method(recipe: Mapping[str, Any], started: str) -> Fact:
    method = dict(recipe.get("method", {}))
    name = str(method.pop("name", "not known"))
    options = ", ".join(f"{k} {v}" for k, v in method.items() if v is not None)
    return Fact("method", name, "; ".join(filter(None, [options, started])))


def _rate(report: RunReport) -> list[Fact]:
    """Return the learning rate, if the run found it."""
    rate = report.learning_rate
    if rate is None:
        return []
    return [Fact("learning rate", rate.value(), f"{rate.way}: {rate.reason}")]


def _base(report: RunReport) -> Fact:
    model = report.recipe.get("model", {})
    path = str(report.base.path or model.get("path") or "not known")
    revision = report.base.revision or model.get("revision")
    trained = ", ".join(report.base.head)
    attention = f"attention: {model['attention']}" if model.get("attention") else ""
    about = [f"revision {revision}" if revision else "", attention]
    about += [f"head: {trained}" if trained else ""]
    return Fact("base model", path, "; ".join(filter(None, about)))


def _data(report: RunReport) -> Fact:
    task, data = report.recipe.get("task", {}), report.recipe.get("data", {})
    parts = [str(data[key]) for key in ("path", "name") if data.get(key)]
    files = data.get("files") or {}
    parts += [str(name) for names in files.values() for name in names]
    rows = report.data.rows
    shown = ", ".join(f"{name} {count(n)}" for name, n in rows.items())
    chosen = report.data.selection or ""
    about = [", ".join(parts), f"rows: {shown}" if shown else "", chosen]
    return Fact("task", str(task.get("name", "not known")), "; ".join(filter(None, about)))


def _cost(report: RunReport) -> list[Fact]:
    training, block = report.seconds.get("train", 0.0), report.recipe.get("training", {})
    steps = "" if report.steps is None else f"{count(report.steps)} steps{_taken_by(report)}"
    last = "of the last process only: the run was resumed" if report.resumed else ""
    loss = "loss in chunks of logits" if block.get("loss") == "chunked" else ""
    blocks = "blocks compiled" if block.get("compile") else ""
    kernels = f"kernels of {block['kernels']}" if block.get("kernels") else ""
    moved = "activations offloaded" if block.get("activation_offload") else ""
    how = [loss, blocks, kernels, moved]
    lines = [f"training {duration(training)}" if training else "", steps, *how, last]
    facts = [Fact("time", duration(sum(report.seconds.values())), "; ".join(filter(None, lines)))]
    return facts + memory_fact(report)


def _taken_by(report: RunReport) -> str:
    name = report.recipe.get("training", {}).get("optimizer", "adamw")
    return "" if name == "adamw" else f" of {name}"


def memory_fact(report: Report) -> list[Fact]:
    """Return the peak memory, of the GPU or of the process; empty if unknown."""
    if report.peak_memory_bytes is None:
        return []
    gpu = report.environment.gpu
    whose = f"of the GPU, {gpu}" if gpu else "of the process, at its peak"
    return [Fact("memory", size(report.peak_memory_bytes), whose)]
