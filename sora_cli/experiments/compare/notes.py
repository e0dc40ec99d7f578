"""Footnotes of a comparison: warnings about incomparable scores, and values from papers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from sora_cli.core.words import first_few
from sora_cli.experiments.compare.cells import Raw
from sora_cli.experiments.compare.runs import Group, Run
from sora_cli.experiments.compare.stats import LEVEL, RESAMPLES
from sora_cli.recipe.metric_facts import facts_of
from sora_cli.report import Environment, RunReport


def remarks_of(groups: Sequence[Group], baseline: str | None) -> Iterator[str]:
    """Yield footnotes about differences and times."""
    if baseline is not None:
        yield difference_note(baseline)
        tasks = dict.fromkeys(group.task for group in groups)
        there = {group.task for group in groups if group.label == baseline}
        without = [task for task in tasks if task not in there]
        if without:
            yield f"there is no {baseline} in {', '.join(without)}"
    resumed = sum(bool(run.report.resumed) for group in groups for run in group.runs)
    if resumed:
        yield (
            f"seconds and memory leave out {resumed} resumed runs: "
            f"their reports measure the last process only"
        )
    machines = {_machine(run.report.environment) for group in groups for run in group.runs}
    if len(machines) > 1:
        yield f"seconds and memory come from different machines: {'; '.join(sorted(machines))}"


def difference_note(baseline: str) -> str:
    """Return the footnote that explains a column of differences."""
    return (
        f"minus {baseline}: mean difference between runs with the same seed; in brackets its "
        f"{LEVEL:.0%} percentile bootstrap interval ({RESAMPLES:,} resamples; too narrow if there "
        f"are few pairs), in parentheses the number of pairs"
    )


def _machine(environment: Environment) -> str:
    """Return the name of the GPU, or processor and threads: "x86_64, 2 threads"."""
    return environment.gpu or f"{environment.processor}, {environment.threads} threads"


def impossible_scores(report: RunReport) -> Iterator[str]:
    """Yield a line for each score outside the metric's range, such as an accuracy of 1.5."""
    for split, scores in report.metrics.items():
        for name, score in scores.items():
            if facts_of(name).ends_at_1 and abs(score) > 1:
                yield (
                    f"{name} of {split} is {score:g}, but at most 1 is possible: "
                    f"the report was changed"
                )


def warnings_of(groups: Sequence[Group]) -> Iterator[str]:
    """Yield reasons not to trust or compare the scores of these runs."""
    for run in (run for group in groups for run in group.runs):
        yield from (f"{run.directory}: {line}" for line in impossible_scores(run.report))
    tasks = dict.fromkeys(group.task for group in groups)
    for task in tasks:
        members = [group for group in groups if group.task == task]
        for what, key in _SAME.items():
            yield from _different(task, what, key, members)


def _different(
    task: str, what: str, key: Callable[[Run], str | None], groups: Sequence[Group]
) -> Iterator[str]:
    labels: dict[str, list[str]] = {}
    for group in groups:
        for run in group.runs:
            value = key(run)
            if value is not None and group.label not in labels.setdefault(value, []):
                labels[value].append(group.label)
    if len(labels) > 1:
        sides = " / ".join(first_few(names) for names in labels.values())
        yield f"{task}: not comparable, {what} differs: {sides}"


def _fingerprint(run: Run, part: str) -> str | None:
    """Return the fingerprint of the rows of a split; None where the report has none."""
    return run.report.data.fingerprints.get(part)


_SAME: Mapping[str, Callable[[Run], str | None]] = {
    "the metric": lambda run: run.metric_name,
    "the reported split": lambda run: run.split,
    "the content of the reported rows": lambda run: _fingerprint(run, run.split),
    "the content of the training rows": lambda run: _fingerprint(run, "train"),
    "the base model": lambda run: run.report.base.fingerprint,
}


class Papers:
    """Values from papers in a table; each source becomes a numbered footnote."""

    def __init__(self) -> None:
        self.sources: dict[str, int] = {}

    def add(self, group: Group, values: dict[str, Raw]) -> None:
        """Add the paper's value for the group's method to its row, with the mark of the footnote.

        A value counts only if the paper used the same model and the metric that is compared.
        """
        for run in group.runs:
            block = run.paper
            compared = block and (block.get("metric"), block.get("model"))
            if block is None or compared != (run.metric_name, run.model):
                continue
            value = (block.get("values") or {}).get(group.method)
            if value is not None:
                values["paper"] = float(value)
                number = self.sources.setdefault(str(block.get("source")), len(self.sources) + 1)
                values["mark"] = f"[{number}]"
                return

    def footnotes(self, *, asked: bool) -> list[str]:
        """Return the numbered sources; if values were asked for, a line that none was found."""
        if asked and not self.sources:
            what = "its model, method and metric"
            return [f"paper: no recipe of these runs has a paper's value for {what}"]
        return [f"[{number}] {source}" for source, number in self.sources.items()]
