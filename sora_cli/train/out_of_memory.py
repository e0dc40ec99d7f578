"""Memory that runs out in a trainer: its steps, its evaluations, the model's move to the device."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from sora_cli.core.console import size
from sora_cli.core.out_of_memory import telling
from sora_cli.recipe.recipe import Recipe

SMALLER_MODEL = "a smaller base model (model.path), or fewer bits: model.dtype, model.quantise"
FEWER_BITS = "fewer bits: model.dtype=bfloat16, or model.quantise=4bit"
_EVAL_ROWS, _WRITTEN_ROWS = "training.eval_batch_size", "task.generation_batch_size"


def in_steps(trainer: Any) -> AbstractContextManager[None]:
    """Name the step whose memory runs out, its sizes, and the settings to lower."""
    return telling(
        lambda: f"step {trainer.state.global_step + 1}",
        where=lambda: _sizes(trainer),
        hint=_smaller_steps(trainer),
    )


def in_evaluation(trainer: Any, *, writing: bool = False) -> AbstractContextManager[None]:
    """Name the evaluation whose memory runs out, and the settings to lower.

    Args:
        writing: the model writes texts, in batches of their own.
    """
    options, step = trainer.task.options, trainer.state.global_step
    rows = options.generation_batch_size if writing else trainer.args.eval_batch_size
    key = f"{_WRITTEN_ROWS if writing else _EVAL_ROWS}="
    fewer = [f"{'--batch-size ' if trainer.predicts else key}{rows // 2}"] if rows > 1 else []
    place = "predicting" if trainer.predicts else "evaluation"
    return telling(
        lambda: f"{place} after step {step}" if step else place,
        where=lambda: f"batches of {rows} rows",
        hint=", or ".join([*fewer, _fewer_tokens(trainer.recipe)]),
    )


def in_dry_run(recipe: Recipe, place: str) -> AbstractContextManager[None]:
    """Name the part of a dry run whose memory runs out, and the settings to lower."""
    words = [*_checkpointing(recipe), _fewer_tokens(recipe), SMALLER_MODEL]
    return telling(lambda: place, hint=", or ".join(words))


def _smaller_steps(trainer: Any) -> str:
    block, words = trainer.recipe.training, []
    parts, rows = block.gradient_accumulation, trainer.args.per_device_train_batch_size
    if (
        rows > 1 and trainer.task.options.LOSS_COMPARES != "micro-batch"
    ):  # the same steps, in smaller parts
        smaller = f"training.micro_batch=null training.gradient_accumulation={2 * parts}"
        words.append(smaller if trainer.micro_batch else "training.micro_batch=auto")
    words += [*_checkpointing(trainer.recipe), _fewer_tokens(trainer.recipe)]
    return ", or ".join([*words, "a smaller training.batch_size"])


def _checkpointing(recipe: Recipe) -> list[str]:
    on = recipe.training.gradient_checkpointing
    return [] if on else ["training.gradient_checkpointing=true"]


def _fewer_tokens(recipe: Recipe) -> str:
    return f"a data.max_length below {recipe.data.max_length}"


def _sizes(trainer: Any) -> str:
    rows, tokens = trainer.args.per_device_train_batch_size, int(trainer.train_rows.sizes.max())
    choice, sizes = trainer.micro_batch, f"micro-batches of {rows} rows of up to {tokens} tokens"
    if choice is None or choice.predicted is None:
        return f"{sizes}; sora train RECIPE --dry-run forecasts their memory"
    free = "" if choice.available is None else f" of {size(choice.available)}"
    return f"{sizes}; the forecast was {size(choice.predicted)}{free}"
