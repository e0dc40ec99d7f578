"""`sora train --dry-run`: prepare a run and print its settings, without training."""

from __future__ import annotations

import contextlib
import json
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from methods.budgets import cost_of
from sora_cli.core.console import count, duration, emit, printable, size
from sora_cli.core.errors import SoraError
from sora_cli.core.timing import importing
from sora_cli.recipe.load import LoadedRecipe
from sora_cli.run.preflight import check_recipe

if TYPE_CHECKING:
    from methods.base import Plan
    from sora_cli.recipe.recipe import TrainingBlock
    from sora_cli.report import RateChoice, Start
    from sora_cli.run.layers import LayerGroup
    from sora_cli.run.memory import MemoryPrediction
    from sora_cli.run.prepare import Prepared
    from sora_cli.run.step_time import StepTime
    from sora_cli.train.steps import Steps

_KEY, _VALUE, _WIDTH = 31, 36, 100  # columns
_MISSING = 12  # parameters listed


@dataclass(frozen=True)
class DryRun:
    """A prepared model and the predicted cost of its training.

    Attributes:
        ready: data, model and adapters.
        seconds: predicted for all training steps, without evaluations.
        memory: predicted peak, in bytes.
    """

    ready: Prepared
    seconds: float
    memory: float


def dry_run(loaded: LoadedRecipe, *, rows: int | None = None) -> DryRun:
    """Prepare a recipe's run and print its settings, data, steps, memory and time.

    A dry run reports every error that would stop the run before its first step.

    Args:
        rows: number of training rows to print as the model reads them; None: two.
    """
    emit_section("recipe", recipe_lines(loaded))
    check_recipe(loaded.recipe)
    with importing():
        from sora_cli.run.layers import other_weights
        from sora_cli.run.memory import predict_memory
        from sora_cli.run.micro_batch import PREDICTION_ONLY, settle
        from sora_cli.run.prepare import prepare
        from sora_cli.run.preview import ROWS, column_lines, rows_lines
        from sora_cli.run.rates.settle import settle_rate
        from sora_cli.run.step_time import measure_corpus, measure_step
        from sora_cli.train.checkpoint.fork import describe_fork, read_fork
        from sora_cli.train.checkpoint.resume import rate_of
        from sora_cli.train.out_of_memory import in_dry_run
        from sora_cli.train.steps import count_steps, learning_rates
        from sora_cli.train.trainer import training_arguments
    block = loaded.recipe.training
    ready = prepare(loaded.recipe, lambda _: contextlib.nullcontext())
    start, stored = ready.start or describe_fork(loaded.recipe), None
    if start is not None:
        emit_section("start", start_lines(start))
        if ready.start is None:
            fork = read_fork(loaded.recipe, start, {}, ready.base.model, ready.layers)
            stored = rate_of(fork.run)
    emit_section("adapted layers", adapted_lines(ready))
    if ready.layers:
        misses = no_adapter_lines(ready, block.train_head)
        emit_section("linear layers without adapter", misses)
        others = other_weights(ready.base.model)
        if others:
            emit_section("other weights without adapter", _table(others))
    emit_section("parameters", parameter_lines(ready, block.train_head))
    metric = ready.task.best
    recipe, _ = settle(loaded.recipe, ready, machine=PREDICTION_ONLY)
    recipe, rate = settle_rate(recipe, ready, stored=stored, dry=True)
    args = training_arguments(recipe, loaded.output_dir, metric, evaluates=True)
    steps = count_steps(args, block, len(ready.train.lengths))
    # before the data sections: the prediction starts from the process's present memory
    with in_dry_run(recipe, "forecast of memory"):
        memory = predict_memory(ready, recipe, rows_per_pass=steps.rows_per_pass)
    emit_section("columns", column_lines(ready))
    emit_section("data", data_lines(ready, block))
    rows = ROWS if rows is None else rows
    if rows:
        lines = rows_lines(ready.task, ready.base.processor, ready.train, rows)
        emit_section("first training rows", lines)
    rates = learning_rates(args, ready.method, ready.layers, steps.total)
    plan = ready.method.plan(ready.layers, total_steps=steps.total, learning_rates=rates)
    emit_section("steps", step_lines(steps, plan))
    emit_section("memory", memory_lines(memory))
    emit_section("output", output_lines(loaded))
    with in_dry_run(recipe, "timing a step"):
        time = measure_step(ready, recipe)
        reading = measure_corpus(ready, loaded.recipe)
    emit_section("in short", short_lines(loaded, ready, rate, steps, time, memory, reading))
    return DryRun(ready, time.seconds * steps.total, memory.peak)


def emit_section(title: str, lines: Iterable[str]) -> None:
    """Print a heading, its lines and an empty line."""
    emit("\n".join([title, *(f"  {line}".rstrip() for line in lines), ""]))


def recipe_lines(loaded: LoadedRecipe) -> Iterator[str]:
    """Yield the key, value and origin of every value in the recipe."""
    for key, value, origin in loaded.values():
        key, text = printable(key), _yaml(value)
        if len(key) < _KEY and len(text) <= _VALUE:
            yield f"{key:<{_KEY}} {text:<{_VALUE}} {origin}"
        else:  # never shortened: people copy these values
            yield f"{key:<{_KEY}} {text}"
            yield f"{'':<{_KEY}} {'':<{_VALUE}} {origin}"


def adapted_lines(ready: Prepared) -> Iterator[str]:
    """Yield the adapted layers; layers whose paths differ only in a number share a line."""
    from sora_cli.run.layers import adapted_groups

    if ready.baseline is not None:
        tensors = len(ready.baseline.parameters)
        yield (
            f"none: method {ready.method.name} trains {count(tensors)} parameter tensors of the "
            "base model itself"
        )
        return
    components = sum(layer.rank for layer in ready.layers.values())
    yield (
        f"{len(ready.layers)} linear layers, {count(components)} components, "
        f"method {ready.method.name}"
    )
    yield from _table(adapted_groups(ready.layers))


def start_lines(start: Start) -> Iterator[str]:
    """Yield the description of the adapter or run that training starts from, and its digest."""
    yield printable(start.sentence())
    if start.head:
        yield f"and its head of {count(start.head)} parameters"
    yield start.digest


def no_adapter_lines(ready: Prepared, train_head: bool) -> Iterator[str]:
    """Yield the linear layers without an adapter, with the reason for each."""
    from sora_cli.run.layers import layers_without_adapter

    model, head = ready.base.model, ready.base.head
    groups = layers_without_adapter(
        model, head=head, train_head=train_head, left_out=ready.left_out
    )
    yield from _table(groups) if groups else ["none"]


def parameter_lines(ready: Prepared, train_head: bool) -> Iterator[str]:
    """Yield parameter counts, and the names of parameters that the base checkpoint lacks.

    Counts are taken from the shapes of the loaded model.
    """
    from sora_cli.run.results import count_parameters

    counts, layers = count_parameters(ready), ready.layers.values()
    share = counts.trained / counts.base
    yield f"{'base model':<24} {count(counts.base):>15}"
    yield f"{'trained':<24} {count(counts.trained):>15}  ({share:.2%} of the base model)"
    label = "adapters at the start" if layers else "trained beside the head"
    yield f"{label:<24} {count(counts.adapter_start):>15}"
    gates = sum(m.d.numel() for m in layers if m.d is not None)
    if gates:
        yield f"{'gates':<24} {count(gates):>15}  (while training)"
    yield f"{'head':<24} {count(counts.head):>15}  ({'trained' if train_head else 'frozen'})"
    if layers:
        costs = [cost_of(m) for m in layers]
        low, high = count(min(costs)), count(max(costs))
        per = low if low == high else f"{low} to {high}"
        gate = ", + 1 gate while training" if gates else ""
        yield f"{'one component':<24} {per:>15}  (in + out{gate})"
    yield from _missing_lines(ready, train_head)


def _missing_lines(ready: Prepared, train_head: bool) -> Iterator[str]:
    missing = ready.base.missing
    if not missing:
        yield "the base checkpoint supplies every parameter"
        return
    fate = "trained" if train_head else "left FROZEN"
    yield f"not in the base checkpoint, drawn at random and {fate}:"
    yield from (f"  {name}" for name in missing[:_MISSING])
    if len(missing) > _MISSING:
        yield f"  ... and {len(missing) - _MISSING} more"


def data_lines(ready: Prepared, training: TrainingBlock) -> Iterator[str]:
    """Yield a table of all parts of the data, then their classes and remarks.

    The table has the number of rows, the tokens of the longest row before the cut, as in the report
    and in remarks, and the rows cut at `data.max_length`.
    """
    from sora_cli.run.class_counts import class_counts, class_lines
    from sora_cli.run.remarks import data_remarks, overlaps_of

    parts = {"train": ready.train, "select": ready.select}
    parts |= {f"report {name}": part for name, part in ready.report.items()}
    yield f"{'part':<32} {'rows':>10} {'longest':>10} {'truncated':>10}"
    for name, part in parts.items():
        longest = part.longest or int(part.lengths.max())  # 0: of a family that cuts no row
        yield f"{name:<32} {count(len(part.lengths)):>10} {longest:>10} {count(part.truncated):>10}"
    corpus = ready.task.corpus_tokens(ready.base.processor)
    if corpus is not None:
        total, cut = count(len(corpus.lengths)), count(corpus.truncated)
        yield f"{'corpus':<32} {total:>10} {corpus.longest:>10} {cut:>10}"
    yield training.choice(ready.rows.rule)
    notes = (f"note: {remark}" for remark in data_remarks(ready, overlaps_of(ready)))
    for line in (*class_lines(class_counts(ready)), *notes):
        yield from textwrap.wrap(line, _WIDTH - 2)


def step_lines(steps: Steps, plan: Plan) -> Iterator[str]:
    """Yield the number of optimiser steps, the method's phases, and its warnings."""
    yield (
        f"{count(steps.total)} optimiser steps, {count(steps.per_epoch)} an epoch, "
        f"{count(steps.warmup)} of them warm-up"
    )
    for name, length in plan.phases:
        yield f"  {count(length):>10}  {name}"
    for note in plan.notes:
        yield from textwrap.wrap(note, _WIDTH - 2)
    for warning in plan.warnings:
        yield from textwrap.wrap(f"WARNING: {warning}", _WIDTH - 2)


def memory_lines(m: MemoryPrediction) -> Iterator[str]:
    """Yield the predicted peak and its parts."""
    kind = "resident memory" if m.device == "cpu" else "GPU memory"
    yield f"predicted peak {kind} {size(m.peak)}"
    for part, n_bytes in (
        ("loaded model and data" if m.device == "cpu" else "loaded model", m.resident),
        ("taken once by the first step", m.runtime),
        ("AdamW moments" + " and the method's averages" * bool(m.averages), m.moments + m.averages),
        ("gradients", m.gradients),
        (f"activations of {_batch(m.training_shape)}", m.activations),
        ("temporaries", m.temporaries),
        ("holes in the heap", m.slack(m.training)),
    ):
        yield f"  {part:<44} {size(n_bytes):>10}"
    if m.training.moved:
        yield f"activations offloaded to the machine's memory {size(m.training.moved)}"
    yield (
        f"peak while training {size(m.training_peak)}, while evaluating "
        f"{size(m.evaluation_peak)} ({_batch(m.evaluation_shape)})"
    )
    if m.search:
        yield f"of it for the search in the corpus, part by part, {size(m.search)}"
    if not m.exact:
        yield "activations extrapolated from batches of one and two rows"


def short_lines(
    loaded: LoadedRecipe,
    ready: Prepared,
    rate: RateChoice | None,
    steps: Steps,
    time: StepTime,
    memory: MemoryPrediction,
    reading: float | None,
) -> Iterator[str]:
    """Yield rank, learning rate, steps, time and memory, each with its origin.

    Args:
        reading: seconds in which the model reads the corpus; None: there is none.
    """
    block, seconds = loaded.recipe.training, time.seconds * steps.total
    ranks = sorted({layer.rank for layer in ready.layers.values()})
    if ranks:
        key = rank_option(loaded, ranks[-1])
        origin = loaded.origin("method", key) if key else "the method's own"
        yield _short_line(
            "rank at the start", " to ".join(map(str, ranks[:: max(len(ranks) - 1, 1)])), origin
        )
    value = f"{block.rate:g}" if rate is None else f"{rate.value()} by the {rate.way}"
    yield _short_line("learning rate", value, loaded.origin("training", "learning_rate"))
    key = "epochs" if block.max_steps is None else "max_steps"
    origin = loaded.origin("training", key)
    yield _short_line("steps", count(steps.total), f"training.{key}, {origin}")
    tokens = "" if time.tokens == time.rows else f", {count(time.tokens)} tokens"
    measured = f"{time.rows} row{'' if time.rows == 1 else 's'}{tokens}"
    about = f"for training alone; measured on {measured}"
    about += ", not compiled" if block.compile else ""
    yield _short_line("time", f"about {duration(max(seconds, 1))}", about)
    if reading is not None:
        corpus = f"{count(len(ready.task.corpus or ()))} documents are read in each evaluation"
        yield _short_line("corpus", f"about {duration(max(reading, 1))}", corpus)
    predicted = "predicted" if block.kernels is None else "predicted for the model's own layers"
    yield _short_line("memory", size(memory.peak), predicted)


def rank_option(loaded: LoadedRecipe, rank: int) -> str | None:
    """Return the name of the method's option that sets this rank; None if no option does."""
    values = loaded.method_config.model_dump()
    return next((k for k, v in values.items() if "r" in k.split("_") and v == rank), None)


def _short_line(name: str, value: str, origin: object) -> str:
    return f"{name:<20} {value:<20} {origin}"


def output_lines(loaded: LoadedRecipe) -> Iterator[str]:
    """Yield the output directory, and a warning if a run may not write there."""
    from sora_cli.run.output import check_output

    yield printable(loaded.output_dir)
    try:
        check_output(loaded, force=False, resume=False)
    except SoraError as error:
        yield from textwrap.wrap(f"WARNING: {error.what}; {error.hint}", _WIDTH - 2)


def _batch(shape: tuple[int, int]) -> str:
    """Describe a batch by its rows, and tokens per row (left out at 1 token, as for images)."""
    rows, tokens = shape
    return f"{rows} rows" if tokens == 1 else f"{rows} rows x {tokens} tokens"


def _table(groups: list[LayerGroup]) -> Iterator[str]:
    wide = max(len(group.pattern) for group in groups)
    for g in groups:
        yield f"{g.count:>4} x {g.pattern:<{wide}}  {g.shape:<16} {g.remark}".rstrip()


def _yaml(value: Any) -> str:
    """Format a value in YAML's notation."""
    if value is None:
        return "null"
    if isinstance(value, str):
        return (value if value.isprintable() else printable(json.dumps(value))) or '""'
    if isinstance(value, Path):
        return printable(value)
    return printable(json.dumps(value, ensure_ascii=False))
