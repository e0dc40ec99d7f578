"""The rules of a proposed recipe; each returns a value with its reason as a text.

The learning rate follows `run/rates/rule.py`. Source of the activations: Korthikanti et al. 2022,
arXiv 2205.05198, equation 2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np

from sora_cli.core.console import count, size
from sora_cli.core.errors import SoraError
from sora_cli.recipe.families import usual_of
from sora_cli.run.rates.rule import number_of, parameters_of, width_of

_QUANTILE = 0.95  # rows longer than this quantile are cut
_MULTIPLE = 8  # of max_length
_STEPS = 300  # steps of a run, if the limits of epochs allow it
_STEPS_AN_EPOCH = 10  # at least, so small data get small batches
_SMALLEST_BATCH = 4
_HELD_OUT, _MOST_HELD_OUT = 5, 2000  # one in five rows, at most 2,000
_UNLIMITED = 10**6  # transformers says 10^30 for a tokenizer without a limit
_MEMORY_SHARE = 0.5  # of the free memory: the estimate of activations is rough


@dataclass(frozen=True)
class Proposed:
    """A proposed value, with its reason."""

    value: Any
    why: str


def base_model(task: str) -> Proposed:
    """Propose a small base model: from an installed package, or else from the Hub."""
    usual = usual_of(task)
    package = usual.package
    if package is not None and find_spec(package.module) is not None:
        return Proposed(package.path, f"small and installed here ({package.about})")
    why = "from the Hub, as in the recipes of this task family (English)"
    return Proposed(usual.on_the_hub, why)


def multilingual_remark(task: str, path: str) -> str | None:
    """Return a remark that names a base model for other languages than English.

    Args:
        path: the recipe's base model; of one that the user chose nothing is known.
    """
    other = usual_of(task).multilingual
    if not other or path != base_model(task).value:
        return None
    from huggingface_hub import try_to_load_from_cache

    here = isinstance(try_to_load_from_cache(other, "config.json"), str)
    return (
        f"the proposed base model is English; one for many languages, "
        f"{'installed here' if here else 'from the Hub'}: --model {other}"
    )


def local_model(task: str) -> str:
    """Return the options that name a base model without the Hub."""
    trial = usual_of(task).builtin
    named = "a model on this disk: --model DIR"
    return f"{named}; or for a trial --model {trial}" if trial else named


def held_out_rows(rows: int) -> Proposed:
    """Propose the number of training rows that become the validation split."""
    if rows < 2:
        raise SoraError(f"the data has {count(rows)} row: training and scoring need a row each")
    value = min(max(rows // _HELD_OUT, 1), _MOST_HELD_OUT)
    return Proposed(
        value,
        f"one in five of {count(rows)} rows, at most 2,000, as there are no others to score on",
    )


def max_length(lengths: Sequence[int] | np.ndarray, limit: int) -> Proposed:
    """Propose max_length: the 95th percentile of lengths, rounded up to a multiple of 8.

    Args:
        lengths: numbers of tokens of the rows, uncut.
        limit: largest number of tokens that the model takes.
    """
    tokens = np.asarray(lengths)
    percentile = int(np.quantile(tokens, _QUANTILE, method="higher"))
    value = min(max(-(-percentile // _MULTIPLE) * _MULTIPLE, _MULTIPLE), limit)
    cut, longest = int((tokens > value).sum()), int(tokens.max())
    held = (
        "all the model takes" if value == limit else f"95 % of the rows have at most {percentile}"
    )
    return Proposed(
        value, f"tokens; {held}; {count(cut)} of {count(len(tokens))} are cut (longest {longest})"
    )


def limit_of(config: Any, tokenizer: Any) -> int:
    """Return the largest number of tokens that a model takes, by its own configuration."""
    text = config.get_text_config()
    known = (
        getattr(tokenizer, "model_max_length", None),
        getattr(text, "max_position_embeddings", None),
    )
    return min((n for n in known if isinstance(n, int) and 0 < n < _UNLIMITED), default=_UNLIMITED)


def batch_size(rows: int, task: str) -> Proposed:
    """Propose the number of rows per step.

    Args:
        rows: number of training rows.
    """
    most = usual_of(task).largest_batch
    fits = 2 ** int(math.log2(max(rows // _STEPS_AN_EPOCH, 1)))
    value = max(min(fits, most), _SMALLEST_BATCH)
    steps = -(-rows // value)
    return Proposed(value, f"rows per step: {count(steps)} steps per epoch")


def epochs(steps: int, task: str) -> Proposed:
    """Propose the number of epochs.

    Args:
        steps: steps of one epoch.
    """
    least, most = usual_of(task).epochs
    value = min(max(-(-_STEPS // steps), least), most)
    return Proposed(
        value, f"{count(value * steps)} steps; the aim is {_STEPS}, in {least} to {most} epochs"
    )


def rank(task: str) -> Proposed:
    """Propose the initial rank of every layer."""
    usual = usual_of(task)
    return Proposed(usual.rank, f"initial rank; {usual.why}")


def activation_bytes(config: Any, *, rows: int, tokens: int, task: str) -> float:
    """Estimate the activations of a training step in float32, in bytes.

    A block stores s b h (34 + 5 a s / h) bytes in 16 bits (Korthikanti et al. 2022, equation 2) and
    twice that in 32 bits. If the model learns texts, logits are stored three times: themselves, as
    probabilities, and as gradients.
    """
    text, rows = config.get_text_config(), rows * usual_of(task).texts
    hidden, heads = width_of(config), number_of(text, "num_attention_heads")
    block = tokens * rows * hidden * (34 + 5 * heads * tokens / max(hidden, 1))
    words = number_of(text, "vocab_size") if usual_of(task).learns_texts else 0
    logits = 3 * 4 * rows * tokens * words
    return 2 * number_of(text, "num_hidden_layers") * block + logits


def accumulation(config: Any, batch: int, *, tokens: int, task: str, free: int | None) -> Proposed:
    """Propose gradient accumulation: the number of micro-batches of a step, to fit into memory.

    Args:
        batch: rows per step.
        tokens: tokens per row.
        free: free memory in bytes; None: unknown.
    """
    parts = 1
    if free is not None:
        room = _MEMORY_SHARE * free - 4 * parameters_of(config)  # 4 bytes a weight, in float32

        def needed(parts: int) -> float:
            return activation_bytes(config, rows=batch // parts, tokens=tokens, task=task)

        while parts < batch and needed(parts) > room:
            parts *= 2
        about = f"about {size(needed(parts))} of activations each, of {size(free)} free memory"
        return Proposed(parts, f"micro-batches per step, with the same result: {about}")
    return Proposed(parts, "micro-batches per step")
