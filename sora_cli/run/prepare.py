"""Prepare a run: load data and model, tokenise, add adapters. Shared by train, dry run and eval."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
import transformers
from datasets import Dataset

from methods.base import AdapterMethod, LowRankLinear
from methods.baselines import Baseline, choose
from methods.configs import MethodConfig, MethodOptions
from methods.dropout import replace_dropouts
from methods.inject import ALL_LINEAR, inject, matches
from methods.registry import method_class
from methods.siblings import share_inputs
from sora_cli.adapter.trained_on import NOTHING, TrainedOn
from sora_cli.core.console import say
from sora_cli.core.device import is_accelerated
from sora_cli.core.environment import process_memory
from sora_cli.core.errors import SoraError
from sora_cli.core.out_of_memory import telling
from sora_cli.core.words import first_few
from sora_cli.data.places import locating
from sora_cli.data.repeats import Keys
from sora_cli.data.rows import Rows, load_rows
from sora_cli.model.base import Base, load_base
from sora_cli.model.new_tokens import train_rows
from sora_cli.model.quantisation import check_selected
from sora_cli.recipe.recipe import Recipe, TrainingBlock
from sora_cli.report import Start
from sora_cli.run.encode import encode
from sora_cli.run.lineage import trained_on
from sora_cli.run.reference import referenced_task
from sora_cli.run.start import start_from_adapter
from sora_cli.run.trial import Trial, try_base
from sora_cli.tasks import create_task
from sora_cli.tasks.base import Task
from sora_cli.tasks.encoded import Encoded
from sora_cli.train import switches
from sora_cli.train.machine import check_machine
from sora_cli.train.out_of_memory import SMALLER_MODEL

Phase = Callable[[str], AbstractContextManager[None]]


@dataclass(frozen=True)
class Prepared:
    """A recipe's tokenised data, and its model with adapters.

    Attributes:
        left_out: module path -> reason why a layer named by `method.targets` has no adapter.
        start: the adapter that the layers started from, if the recipe names one.
        trial_memory: growth of the process during the trial of layers, in bytes; 0 if unknown.
        trained: inputs that the result is trained on, its base model and starting adapter included.
    """

    task: Task
    rows: Rows
    base: Base
    train: Encoded
    select: Encoded
    report: dict[str, Encoded]
    method: AdapterMethod
    layers: dict[str, LowRankLinear]
    left_out: Mapping[str, str] = field(default_factory=dict)
    trial_memory: int = 0
    start: Start | None = None
    trained: TrainedOn = NOTHING

    @property
    def selects_apart(self) -> bool:
        """True if the checkpoint is chosen on rows that are not reported."""
        return self.task.data.selection != "validation"

    @property
    def baseline(self) -> Baseline | None:
        """The method, if it is a baseline without low-rank layers."""
        return self.method if isinstance(self.method, Baseline) else None


def prepare(recipe: Recipe, phase: Phase) -> Prepared:
    """Load data and model, tokenise the rows, and put the adapters into the model.

    Args:
        phase: times a step; its argument is the step's name, which is also printed.
    """

    @contextmanager
    def announced(name: str) -> Iterator[None]:
        say(f"{name} ...")
        with phase(name), telling(lambda: name, hint=SMALLER_MODEL):
            yield

    with recipe.placing():
        return _prepare(recipe, announced)


def _prepare(recipe: Recipe, phase: Phase) -> Prepared:
    check_machine(recipe.training)
    switches.check_machine(recipe)
    # data before the model: a mistake in a file is found in seconds, loading may take minutes
    with phase("load data"):
        transformers.set_seed(recipe.training.seed)  # before the draw of a new head
        task, rows = load_task(recipe)
        check_rows(task, rows, (rows.train, rows.select, *rows.report.values()))
    with phase("load model"):
        block = recipe.training
        base = load_base(recipe.model, task, dropout=block.model_dropout, precision=block.precision)
        switches.check_model(recipe, base.model)
        if not is_accelerated():
            replace_dropouts(base.model)  # torch's take longer on a CPU than the layers around
    with phase("tokenise"):
        train = encode(task, base, rows.train, rows.origin(rows.train), training=True)
        report = {
            name: encode(task, base, part, rows.origin(part)) for name, part in rows.report.items()
        }
        # rows that choose and are reported, too, are tokenised once
        reported = (report[name] for name, part in rows.report.items() if part is rows.select)
        select = next(reported, None) or encode(task, base, rows.select, rows.origin(rows.select))
    with phase("inject"):
        collate = task.collator(base.processor)
        before = process_memory("VmRSS") or 0
        # before the adapters are added: the trial decides which layers get one
        trial = (
            try_base(base, collate, train, task.step_loss)
            if recipe.method.config.low_rank
            else Trial()
        )
        grown = max((process_memory("VmRSS") or 0) - before, 0)
        method, layers = add_adapters(recipe, base, trial.unfit)
        share_inputs(layers, trial.siblings)
        _choose_loss(recipe, task)  # after the trial of layers, which needs the plain loss
        # before `begin`: the method's schedule starts from the loaded update
        start = start_from_adapter(recipe, base, task, method, layers)
        steps = recipe.training.total_steps(len(train.lengths))
        _note_unreached(recipe.training, steps)
        method.begin(layers, total_steps=steps)  # refuses an impossible schedule
    left_out = {
        path: why for path, why in trial.unfit.items() if _targets_layer(method.config, path)
    }
    return Prepared(
        task, rows, base, train, select, report, method, layers, left_out, grown, start,
        trained_on(recipe, task, rows.train, train),
    )  # fmt: skip


def _choose_loss(recipe: Recipe, task: Task) -> None:
    """Compute the loss in chunks if the recipe asks for it, or if chunks cost nothing."""
    if task.learned is None:
        return
    if recipe.training.loss == "chunked":
        task.learned.chunk()
    elif recipe.training.loss == "auto":
        task.learned.chunk_if_frozen()


def _note_unreached(block: TrainingBlock, steps: int) -> None:
    """Print a note on steps in `keep_checkpoints` that the run does not reach."""
    missed = sorted(step for step in block.kept_steps(steps) if not 0 < step <= steps)
    if missed and steps:
        say(
            f"note: training.keep_checkpoints names {first_few(missed)}, but the run has only "
            f"{steps} steps"
        )


def _targets_layer(config: MethodOptions, path: str) -> bool:
    """Return whether a method's targets name this layer."""
    assert isinstance(config, MethodConfig)
    names = [config.targets] if isinstance(config.targets, str) else config.targets
    return ALL_LINEAR in names or any(matches(name, path) for name in names)


def load_task(recipe: Recipe, rows: Rows | None = None) -> tuple[Task, Rows]:
    """Load a recipe's rows, and bind its task to these rows.

    Errors name the place in the recipe.

    Args:
        rows: the rows, if they are already loaded.
    """
    with recipe.placing():
        task = referenced_task(recipe)
        rows = load_rows(recipe.data, partial(raw_keys, recipe)) if rows is None else rows
        with locating(rows.origin(rows.train)):
            task.bind(rows.train)
    return task, rows


def raw_keys(recipe: Recipe, rows: Dataset) -> Keys:
    """Return the keys of raw rows by the columns that the recipe's task finds in them."""
    task = create_task(recipe.task, recipe.data)
    task.find_inputs(rows)
    return task.raw_keys(rows)


def check_rows(
    task: Task,
    rows: Rows,
    parts: Iterable[Dataset],
    *,
    places: Callable[[int], Sequence[int]] | None = None,
) -> None:
    """Check the rows of some parts without a model; a part given twice is checked once.

    Errors name the split, file and line.

    Args:
        places: number of rows in a part -> indices of the rows to check; None: check all.
    """
    for part in {id(part): part for part in parts}.values():
        origin, chosen = rows.origin(part), part
        if places is not None:
            numbers = places(len(part))
            origin, chosen = origin.of(numbers), part.select(numbers)
        with locating(origin, rows.origin(rows.train)):
            task.check(chosen)


def add_adapters(
    recipe: Recipe, base: Base, unfit: Mapping[str, str] | None = None
) -> tuple[AdapterMethod, dict[str, LowRankLinear]]:
    """Put the recipe's adapters into the base model; a baseline gets none.

    Args:
        unfit: see `methods.inject.find_targets`.
    """
    method = method_class(recipe.method.name)(recipe.method.config)
    train_head = recipe.training.train_head
    if isinstance(method, Baseline):
        with recipe.placing("method.name"):
            check_selected(base.model, method)
            choose(base.model, method, head=base.head, train_head=train_head)
        return method, {}
    if not method.config.low_rank:
        raise SoraError(
            f"method '{method.name}' has options with low_rank = False, but is no "
            "methods.baselines.Baseline"
        )
    with recipe.placing("method.targets"):
        layers = inject(
            base.model,
            method,
            exclude=base.head,
            trainable=base.head if train_head else (),
            unfit=unfit,
            generator=torch.Generator().manual_seed(recipe.training.seed),
        )
    if base.new_tokens:
        train_rows(base.model, base.new_tokens)
    return method, layers
