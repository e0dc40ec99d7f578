"""Check a recipe before torch and transformers are imported; the checks need neither.

The run repeats each check later, when it needs the result.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from methods.registry import config_class
from sora_cli.adapter.digest import result_remarks
from sora_cli.adapter.places import locate_adapter
from sora_cli.core.console import say_notes
from sora_cli.core.errors import SoraError
from sora_cli.data.source import check_file, find_source
from sora_cli.model.files import check_source
from sora_cli.model.references import resolve_model_path
from sora_cli.recipe.families import check_columns, main_metric
from sora_cli.recipe.metric_names import check_metric, from_the_hub
from sora_cli.recipe.recipe import Recipe
from sora_cli.recipe.task_options import BASE_MODEL, FROM_START
from sora_cli.train import switches
from sora_cli.train.checkpoint.fork import describe_fork


def check_recipe(recipe: Recipe, *, model: bool = True) -> None:
    """Check a recipe's task, data and model; print a note on foreign code that the run executes.

    Args:
        model: also check the base model; False if another model takes its place.
    """
    with recipe.placing():
        _check_compaction(recipe)
        _check_loss(recipe)
        _check_new_tokens(recipe)
        options = recipe.task.options
        for name in options.metrics:
            check_metric(name, options.METRICS, from_hub=options.FROM_THE_HUB)
        main_metric(options.metrics, options.best_metric)
        check_columns(recipe.task.name, recipe.data.columns)
        find_source(recipe.data)
        check_corpus(recipe)
        _check_sides(recipe)
    _check_start(recipe)
    if model:
        with recipe.placing("model.path"):
            check_source(recipe.model.path, resolve_model_path(recipe.model.path))
        with recipe.placing():
            switches.check_recipe(recipe)
    say_notes(code_notes(recipe))


def _check_sides(recipe: Recipe) -> None:
    """Refuse to adapt queries alone where the bare base model cannot be had beside the adapter."""
    if not recipe.task.options.queries_alone:
        return
    why = None
    if not config_class(recipe.method.name).low_rank:
        why = f"method {recipe.method.name} trains the model itself"
    elif recipe.model.new_tokens:
        why = "model.new_tokens change how the base model reads documents"
    if why is not None:
        raise SoraError(
            f"task.adapt=query needs the base model beside an adapter: {why}",
            hint="task.adapt=both",
            key="task.adapt",
        )


def check_corpus(recipe: Recipe) -> None:
    """Refuse a corpus that is no file, or that the task does not search."""
    corpus, options = recipe.data.corpus, recipe.task.options
    if corpus is None:
        return
    if not options.searches:
        loss = getattr(options, "loss", None)
        about = f" with task.loss={loss}" if loss is not None else ""
        raise SoraError(
            f"data.corpus is for queries that find documents, not for {recipe.task.name}{about}",
            hint="data.corpus=null",
            key="data.corpus",
        )
    with recipe.placing("data.corpus"):
        check_file(Path(corpus).expanduser())


def check_precision(recipe: Recipe, command: str) -> None:
    """Refuse `precision: auto` for a command that trains several runs."""
    if recipe.training.precision == "auto":
        raise SoraError(
            f"{command} needs a fixed training.precision, not auto",
            hint="training.precision=bf16 or fp32; sora train RECIPE --dry-run shows which",
            key="training.precision",
        )


def check_settled(recipe: Recipe, command: str) -> None:
    """Refuse `precision: auto` and `micro_batch: auto` for a command that trains several runs."""
    check_precision(recipe, command)
    if recipe.training.micro_batch is not None:
        raise SoraError(
            f"{command} needs a fixed micro-batch, not training.micro_batch: auto",
            hint="training.micro_batch=null training.gradient_accumulation=N; "
            "sora train RECIPE --dry-run shows N",
            key="training.micro_batch",
        )


def _check_compaction(recipe: Recipe) -> None:
    name = recipe.method.name
    if recipe.training.compact_every is not None and not config_class(name).adapts_rank:
        raise SoraError(
            f"training.compact_every removes dead components, but method {name} has none",
            hint="training.compact_every=null",
            key="training.compact_every",
        )


def _check_loss(recipe: Recipe) -> None:
    name = recipe.task.name
    if recipe.training.loss == "chunked" and not recipe.task.options.CHUNKS_LOSS:
        raise SoraError(
            f"training.loss=chunked is for causal language models, but task.name is {name}",
            hint="training.loss=logits",
            key="training.loss",
        )
    if recipe.task.options.LOSS_COMPARES != "nothing" and recipe.training.batch_size == 1:
        raise SoraError(
            f"the loss of {name} compares the rows of a step, and a step of one row has no others",
            hint="training.batch_size=32",
            key="training.batch_size",
        )


def _check_new_tokens(recipe: Recipe) -> None:
    options, why = recipe.task.options, None
    if not config_class(recipe.method.name).low_rank:
        why = f"method {recipe.method.name} writes no adapter, which would hold their rows"
    elif options.PROCESSOR_CLASS != "AutoTokenizer":
        why = f"the models of task {recipe.task.name} read no plain text"
    elif options.needs_reference:
        why = "the loss compares with a model that does not know them (orpo and simpo do not)"
    if recipe.model.new_tokens and why is not None:
        raise SoraError(
            f"no new tokens here: {why}", hint="model.new_tokens=[]", key="model.new_tokens"
        )


def _check_start(recipe: Recipe) -> None:
    block = recipe.start
    if getattr(recipe.task.options, "reference", None) == FROM_START:
        raise SoraError(
            "task.reference: a fork has the reference of the run that it goes on from: name it",
            hint=f"task.reference={BASE_MODEL}, or the adapter directory that run started from",
            key="start.checkpoint",
        )
    if block is not None and block.adapter is not None:
        with recipe.placing("start.adapter"):
            say_notes(result_remarks(locate_adapter(Path(block.adapter).expanduser())))
    describe_fork(recipe)


def code_notes(recipe: Recipe) -> Iterator[str]:
    """Yield a note for each piece of foreign code that the run executes.

    Foreign is code that belongs neither to this program nor to an installed package.
    """
    block = recipe.model
    if block.trust_remote_code:
        place = recipe.place("model.trust_remote_code") or "the recipe"
        pinned = "" if block.revision else "; model.revision pins it"
        yield (
            f"model.trust_remote_code is on ({place}): code that comes with the model "
            f"is run{pinned}"
        )
    for name in from_the_hub(recipe.task.options):
        yield f"metric '{name}' is code from the Hub's collection evaluate-metric, and is run"
