"""Scores of an adapter, a run or a model on benchmarks of lm-evaluation-harness.

The harness gets the model as `sora eval` loads it, with the adapter's layers inside. So adapters of
any layout can be scored, including adapters that PEFT cannot load.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from pydantic import BaseModel, Field

from methods.words import closest
from sora_cli.adapter.digest import result_digest
from sora_cli.core.console import say
from sora_cli.core.device import device_type
from sora_cli.core.errors import SoraError, first_line
from sora_cli.core.out_of_memory import telling
from sora_cli.core.shell import quote
from sora_cli.core.verbosity import verbose
from sora_cli.recipe.families import CausalLmOptions, options_class
from sora_cli.recipe.recipe import Recipe
from sora_cli.run.scoring import load_target
from sora_cli.tasks import create_task
from sora_cli.train.out_of_memory import FEWER_BITS
from sora_cli.use.benchmark_choice import Benchmarks

_PLAIN = "none"  # the harness's name for "no filter", in keys like "acc,none"
_ERROR = "_stderr"


class TaskScores(BaseModel):
    """The scores of one benchmark."""

    scores: dict[str, float] = Field(description="score by metric, and filter if there is one")
    errors: dict[str, float] = Field(description="standard error by metric, where there is one")
    rows: int | None = Field(None, description="number of scored rows")
    few_shot: int | None = Field(None, description="examples in each prompt")
    version: str | None = Field(None, description="version of the benchmark's definition")


class BenchmarkReport(BaseModel):
    """The content of `benchmarks.json`."""

    target: str = Field(description="the scored adapter, run or model, as the user named it")
    digest: str | None = Field(None, description="digest of the adapter or the run's result")
    harness: str = Field(description="version of lm-evaluation-harness")
    limit: int | None = Field(None, description="largest number of rows per benchmark; null: all")
    results: dict[str, TaskScores] = Field(description="scores by benchmark")
    notes: list[str] = Field([], description="remarks on the model")


def benchmark_report(
    target: str, place: Path, recipe: Recipe, asked: Benchmarks, *, on: str | None
) -> BenchmarkReport:
    """Score a causal language model, or an adapter or run of one, on benchmarks.

    Args:
        target: as the user named it.
        place: directory of the target.
        on: base model for an adapter or a delta; None means the recorded base model.
    """
    _check_family(recipe, target)
    index = _find_benchmarks(asked.names, asked.folder)
    results, notes = _score_benchmarks(target, recipe, asked, index, on=on)
    return BenchmarkReport(
        target=target,
        digest=result_digest(place),
        harness=version("lm_eval"),
        limit=asked.limit,
        results=results,
        notes=notes,
    )


def _find_benchmarks(names: Sequence[str], folder: Path | None) -> TaskManager:
    """Return the harness's index of benchmarks; an error if a name is not in it."""
    _silence_harness()
    if folder is not None:  # to index the harness's own thousands takes many seconds
        index = TaskManager(include_path=str(folder), include_defaults=False)
        if set(names) <= set(index.all_subtasks):
            return index
    index = TaskManager(include_path=None if folder is None else str(folder))
    known = set(index.all_tasks)
    for name in names:
        if name not in known:
            near = closest(name, sorted(known))
            listed = "to list all benchmarks: lm-eval ls tasks"
            raise SoraError(
                f"there is no benchmark '{name}'",
                hint=f"did you mean '{near}'?" if near else listed,
            )
    return index


def _check_family(recipe: Recipe, target: str) -> None:
    """Raise an error if the target is no causal language model."""
    if options_class(recipe.task.name).MODEL_CLASS != CausalLmOptions.MODEL_CLASS:
        raise SoraError(
            f"benchmarks score causal language models, and '{target}' is for {recipe.task.name}",
            hint=f"its own metrics: sora eval {quote(target)} --recipe RECIPE",
        )


def _score_benchmarks(
    target: str, recipe: Recipe, asked: Benchmarks, index: TaskManager, *, on: str | None
) -> tuple[dict[str, TaskScores], list[str]]:
    """Return the scores by benchmark, and notes on the loaded model."""
    with telling(lambda: "load model", hint=FEWER_BITS):
        base = load_target(target, recipe, create_task(recipe.task, recipe.data), on=on)
        model = base.model.eval().to(device_type())
    language_model = HFLM(
        pretrained=model, tokenizer=base.processor, backend="causal", batch_size=asked.batch
    )
    say(f"{', '.join(asked.names)} ...")
    less = telling(
        lambda: "benchmarks",
        where=lambda: f"batches of {asked.batch} rows",
        hint="a smaller --batch-size",
    )
    with less, redirect_stdout(sys.stderr):  # the harness prints; stdout is for the report
        tasks = _loaded(index, asked.names)
        results = simple_evaluate(
            model=language_model,
            tasks=tasks,
            task_manager=index,
            limit=asked.limit,
            num_fewshot=asked.few_shot,
            log_samples=False,
        )
    assert results is not None  # the harness returns None in processes other than the first
    return {name: _scores(results, name) for name in results["results"]}, list(base.notes)


def _loaded(index: TaskManager, names: Sequence[str]) -> list[Any]:
    """Return the benchmarks with their rows; the harness loads the rows when it creates a task."""
    made: list[Any] = []
    for name in names:
        try:
            tasks = index.load([name])
        # datasets, the Hub's client and a user's own definition may raise anything
        except Exception as error:
            raise SoraError(
                f"benchmark '{name}' cannot be loaded",
                where=f"{type(error).__name__}: {first_line(error, 160)}",
                hint="its data must be in the cache, or the Hub must be reachable",
            ) from error
        made += [*(tasks["groups"].values() or tasks["tasks"].values())]
    return made


def _scores(results: Any, name: str) -> TaskScores:
    values: dict[str, float] = {}
    errors: dict[str, float] = {}
    for key, value in results["results"][name].items():
        metric, comma, rule = key.partition(",")
        if not comma or not isinstance(value, int | float):
            continue
        plain = metric.removesuffix(_ERROR)
        shown = plain if rule == _PLAIN else f"{plain} ({rule})"
        (errors if metric.endswith(_ERROR) else values)[shown] = float(value)
    rows, made = results.get("n-samples", {}).get(name), results.get("versions", {}).get(name)
    return TaskScores(
        scores=values,
        errors=errors,
        rows=None if rows is None else rows["effective"],
        few_shot=results.get("n-shot", {}).get(name),
        version=None if made is None else str(made),
    )


def _silence_harness() -> None:
    if not verbose():
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
