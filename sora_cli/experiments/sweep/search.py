"""A search with Optuna (Akiba et al. 2019, arXiv 1907.10902): each run is a trial.

The study is stored beside the runs in `optuna.jsonl`, so that a stopped search can be continued.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from sora_cli.core.console import count, emit
from sora_cli.core.errors import SoraError
from sora_cli.core.table import Column, Table, emit_table
from sora_cli.experiments.compare.runs import selection_score, selection_scores
from sora_cli.experiments.sweep.definition import Range
from sora_cli.experiments.sweep.plan import SweepPlan, load_checked, search_base, word
from sora_cli.experiments.sweep.record import RunRecord, State
from sora_cli.experiments.sweep.source import Ready, Source
from sora_cli.report import FILE_NAME, RunReport, read_report

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.distributions import BaseDistribution

STUDY = "optuna.jsonl"
_DEFINITION = "search"
_SHOWN = 10
"""Largest number of trials in the final table."""


@final
class SearchSource(Source):
    """The source of a search: it asks Optuna for trials and reports their scores."""

    def __init__(self, plan: SweepPlan) -> None:
        search = plan.sweep.sweep.search
        assert search is not None
        self.plan, self.search = plan, search
        self.base = search_base(plan)
        block = self.base.loaded.recipe
        if "metric" in search.objectives and block.training.evaluate == "no":
            raise SoraError(
                "a search for the metric needs evaluations during training",
                where=self.base.loaded.origin("training", "evaluate").place,
                hint="training.evaluate=epoch",
            )
        self.greater_is_better = block.task.options.greater_is_better
        self._space = {key: _distribution(allowed) for key, allowed in search.space.items()}
        self._study = self._open()
        self._trials: dict[str, Trial] = {}
        self._seen: dict[str, float] = {}
        self.records = {}
        for frozen in self._study.get_trials(deepcopy=False):
            self._remember(frozen.number, frozen.state.name)

    def next(self) -> Ready | None:
        """Return a trial to restart, otherwise a new trial from Optuna; None if all are started."""
        name = next((r.name for r in self.records.values() if r.state == "waiting"), None)
        if name is None:
            if len(self.records) >= self.search.trials:
                return None
            trial = self._study.ask(self._space)
            name = _name(trial.number)
            self._trials[name] = trial
            self.records[name] = RunRecord(name=name, arguments=[])
        return self._ready(name, self._trials[name].params)

    def ended(self, name: str, state: State) -> None:
        """Report the end of a trial to Optuna, with its scores if it finished."""
        from optuna.trial import TrialState

        self.records[name].state = state
        if state == "waiting":
            return
        trial = self._trials[name]
        if state == "finished":
            report = read_report(self._directory(name))
            assert report is not None
            self._report_scores(trial, report)
            self._study.tell(trial, [self._value(goal, report) for goal in self.search.objectives])
        else:
            self._study.tell(trial, state=TrialState[{"pruned": "PRUNED"}.get(state, "FAIL")])

    def unwanted(self, name: str) -> bool:
        """Return True if Optuna would prune the trial, by its evaluations so far."""
        if not self.search.pruning:
            return False
        directory = self._directory(name)
        try:
            changed = (directory / FILE_NAME).stat().st_mtime
        except OSError:
            return False
        if self._seen.get(name) == changed:  # the loop asks several times per second
            return False
        self._seen[name] = changed
        report = read_report(directory)
        if report is None or report.status != "running":
            return False
        self._report_scores(self._trials[name], report)
        return bool(self._trials[name].should_prune())

    def is_over(self) -> bool:
        """Return True if all trials have been started and have ended."""
        return len(self.records) >= self.search.trials and super().is_over()

    def conclude(self) -> None:
        """Print the best trials (with two objectives: the Pareto front) and the first's command."""
        from optuna.trial import TrialState

        ended = self._study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
        if not ended:
            return
        single = len(self.search.objectives) == 1
        best = sorted(self._study.best_trials, key=lambda trial: trial.values[-1])
        if single:
            best = sorted(ended, key=lambda t: t.values[0], reverse=self._maximises(0))[:_SHOWN]
        columns = [Column("trial"), *(Column(name, _score) for name in self.search.objectives)]
        columns += [Column(name, _value_text, "None") for name in self.search.space]
        rows = [[_name(trial.number), *trial.values,
                 *(trial.params[key] for key in self.search.space)] for trial in best]  # fmt: skip
        title = "best trials" if single else "Pareto front: no other trial is better in both"
        emit_table(Table(title, columns, rows))
        ready = self._ready(_name(best[0].number), best[0].params)
        words = [w for w in ready.words if not w.startswith("output.dir=")]
        emit(shlex.join(["sora", "train", ready.recipe, *words]))

    def _open(self) -> Study:
        optuna = _optuna()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        backend = optuna.storages.journal.JournalFileBackend(str(self.plan.directory / STUDY))
        directions = ["maximize" if self._maximises(i) else "minimize" for i in
                      range(len(self.search.objectives))]  # fmt: skip
        startup = self.search.startup_trials
        pruner = optuna.pruners.MedianPruner(n_startup_trials=startup)
        study: Study = optuna.create_study(
            storage=optuna.storages.JournalStorage(backend),
            study_name=self.plan.sweep.name,
            directions=directions,
            sampler=optuna.samplers.TPESampler(seed=self.search.seed, n_startup_trials=startup),
            pruner=pruner if self.search.pruning else optuna.pruners.NopPruner(),
            load_if_exists=True,
        )
        return self._checked(study)

    def _checked(self, study: Study) -> Study:
        """Check that the study belongs to this search; only the number of trials may differ."""
        search = self.search.model_dump(mode="json", exclude={"trials"})
        now = {**search, "recipe": self.base.recipe, "words": list(self.plan.words)}
        before = study.user_attrs.get(_DEFINITION)
        if before is None:
            study.set_user_attr(_DEFINITION, now)
        elif before != now:
            key = next(key for key in now if before.get(key) != now[key])
            raise SoraError(
                f"'{self.plan.directory}' holds another search: its {key} differs",
                where=f"there it is {json.dumps(before.get(key))[:150]}",
                hint="name another directory: output.dir=DIR",
            )
        return study

    def _remember(self, number: int, state: str) -> None:
        """Record a trial of an earlier call; an unfinished trial waits for a restart."""
        from optuna.trial import Trial

        name = _name(number)
        known: dict[str, State] = {"COMPLETE": "finished", "PRUNED": "pruned", "FAIL": "failed"}
        record = RunRecord(name=name, arguments=[], state=known.get(state, "waiting"))
        record.before = record.state != "waiting"
        self.records[name] = record
        frozen = self._study.get_trials(deepcopy=False)[number]
        # `study.ask` gives new trials only; a Trial, which can be reported to and pruned, is made
        # for an old one by its private number alone: optuna has no public way
        self._trials[name] = Trial(self._study, frozen._trial_id)

    def _directory(self, name: str) -> Path:
        return self.plan.directory / name

    def _ready(self, name: str, params: dict[str, Any]) -> Ready:
        directory = self._directory(name)
        chosen = [word(key, value) for key, value in params.items()]
        words = (*self.plan.words, *chosen, word("output.dir", str(directory)))
        where = {word(k, v): self.plan.sweep.place("search", "space", k) for k, v in params.items()}
        loaded = load_checked(self.plan.sweep, self.base.recipe, words, lambda: where, name)
        return Ready(name, self.base.recipe, words, directory, loaded.recipe.resources)

    def _maximises(self, objective: int) -> bool:
        return self.search.objectives[objective] == "metric" and self.greater_is_better

    def _value(self, objective: str, report: RunReport) -> float:
        if objective == "parameters":
            return report.parameters.adapter_end
        score = selection_score(report)
        assert score is not None
        return score

    def _report_scores(self, trial: Trial, report: RunReport) -> None:
        """Report new evaluations to Optuna, which accepts them for a single objective only."""
        if len(self.search.objectives) > 1:
            return
        known = self._study.get_trials(deepcopy=False)[trial.number].intermediate_values
        for step, score in selection_scores(report).items():
            if step not in known:
                trial.report(score, step)


def _distribution(allowed: Range) -> BaseDistribution:
    d = _optuna().distributions
    if allowed.choices is not None:
        return d.CategoricalDistribution(allowed.choices)  # type: ignore[no-any-return]
    if allowed.whole:
        return d.IntDistribution(  # type: ignore[no-any-return]
            allowed.low, allowed.high, log=allowed.log, step=allowed.step or 1
        )
    return d.FloatDistribution(  # type: ignore[no-any-return]
        allowed.low, allowed.high, log=allowed.log, step=allowed.step
    )


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise SoraError(
            "a search needs Optuna, which is not installed", hint="pip install 'sora-cli[search]'"
        ) from error
    return optuna


def _name(number: int) -> str:
    return f"trial-{number:03d}"


def _score(value: float) -> str:
    return f"{value:.4f}" if isinstance(value, float) and value < 1e3 else count(value)


def _value_text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
