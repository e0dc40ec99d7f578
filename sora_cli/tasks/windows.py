"""Questions with long contexts, split into overlapping windows, and the best answer of a window.

A window without the answer learns to point at its null place: the tokenizer's CLS token, or the
first token if the tokenizer adds none (Devlin et al. 2019, sections 4.2 and 4.3).
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor
from torch.nn.functional import cross_entropy

from sora_cli.data.places import RowError
from sora_cli.tasks.texts import require_offsets, row_error


def make_windows(rows: Dataset, tokenizer: Any, *, max_length: int, stride: int) -> Dataset:
    """Return one row per window: the question, and as much of the context as fits.

    Further columns are `start_positions` and `end_positions` (the answer's tokens), `example` (the
    number of the window's row), `null` (the place that means "no answer"), `first` (the first token
    of the context), and `starts` and `ends`: for each token of the context its place in the text.

    A question that leaves no room for the context is an error.

    Args:
        rows: columns `row` (its number), `question`, `context`, and the answer's place in the
            context, `start` and `end` (-1: no answer).
        max_length: tokens of a window.
        stride: tokens that neighbouring windows have in common.
    """
    require_offsets(tokenizer)
    special = tokenizer.num_special_tokens_to_add(pair=True)
    gap = "" if special else "\n"  # without special tokens, something must separate the context

    def encode_batch(batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        questions = [f"{text.strip()}{gap}" for text in batch["question"]]
        counts = [len(ids) for ids in tokenizer(questions, add_special_tokens=False)["input_ids"]]
        _check_room(counts, batch["row"], special=special, max_length=max_length, stride=stride)
        out = tokenizer(
            questions,
            batch["context"],
            truncation="only_second",
            max_length=max_length,
            stride=stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        owners = out["overflow_to_sample_mapping"]
        columns = {name: out[name] for name in tokenizer.model_input_names if name in out}
        answers = [(batch["start"][owner], batch["end"][owner]) for owner in owners]
        _check_contexts(out, [batch["row"][owner] for owner in owners])
        windows = [_window(out, i, answer, tokenizer) for i, answer in enumerate(answers)]
        placed = {name: [window[name] for window in windows] for name in windows[0]}
        return {**columns, "example": [batch["row"][owner] for owner in owners], **placed}

    return rows.map(
        encode_batch,
        batched=True,
        remove_columns=rows.column_names,
        new_fingerprint=secrets.token_hex(8),  # random: computing one is slow
        load_from_cache_file=False,
        desc="tokenising",
    )


def window_losses(logits: Tensor, real: Tensor, positions: Tensor) -> Tensor:
    """Return (windows,): the mean of the cross-entropies of an answer's start and its end.

    In a model's own loss padding competes with tokens, so that the loss depends on the length that
    a window is padded to. This is the loss of each window without padding.

    Args:
        logits: (windows, tokens, 2).
        real: (windows, tokens) False on padding.
        positions: (windows, 2).
    """
    exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
    exact = exact.masked_fill(~real[..., None], -torch.inf)
    return cross_entropy(exact, positions, reduction="none").mean(dim=1)


def best_span(starts: np.ndarray, ends: np.ndarray, longest: int) -> tuple[float, int, int]:
    """Return the largest sum of a start and an end logit, and the two tokens.

    All pairs are compared, not only pairs of the best starts and ends.

    Args:
        starts, ends: (tokens,) logits of the context.
        longest: most tokens of an answer.
    """
    # row i of the windows: the end logits of spans of 1 to `longest` tokens that start at token i
    padded = np.concatenate([ends, np.full(longest - 1, -np.inf)])
    sums = starts[:, None] + sliding_window_view(padded, longest)  # (tokens, longest)
    start, length = np.unravel_index(int(sums.argmax()), sums.shape)
    return float(sums[start, length]), int(start), int(start + length)


def _window(encoded: Any, number: int, answer: tuple[int, int], tokenizer: Any) -> dict[str, Any]:
    ids = encoded["input_ids"][number]
    null = ids.index(tokenizer.cls_token_id) if tokenizer.cls_token_id in ids else 0
    parts = encoded.sequence_ids(number)
    first = parts.index(1)
    places = [place for place, part in zip(encoded["offset_mapping"][number], parts, strict=True)
              if part == 1]  # fmt: skip
    starts, ends = [start for start, _ in places], [end for _, end in places]
    span = _tokens_of(answer, starts, ends)
    return {
        "start_positions": null if span is None else first + span[0],
        "end_positions": null if span is None else first + span[1],
        "null": null,
        "first": first,
        "starts": starts,
        "ends": ends,
    }


def _tokens_of(
    answer: tuple[int, int], starts: Sequence[int], ends: Sequence[int]
) -> tuple[int, int] | None:
    """Return an answer's first and last token; None if any part of it is outside the window."""
    begin, end = answer
    if begin < 0 or starts[0] > begin or ends[-1] < end:
        return None
    # in characters: the first token that ends after `begin`, the last that starts before `end`
    first, last = np.searchsorted(ends, begin, "right"), np.searchsorted(starts, end, "left") - 1
    return (int(first), int(last)) if first <= last else None


def _check_contexts(encoded: Any, owners: Sequence[int]) -> None:
    for number, row in enumerate(owners):
        if 1 not in encoded.sequence_ids(number):
            raise row_error(
                "the tokenizer makes no token of the context", row, key="data.columns.context"
            )


def _check_room(
    counts: Sequence[int], numbers: Sequence[int], *, special: int, max_length: int, stride: int
) -> None:
    """Check that each window adds at least one token of the context."""
    longest = max(counts)
    least = longest + special + stride + 1
    if least > max_length:
        row = numbers[counts.index(longest)]
        raise RowError(
            f"the question has {longest} tokens and leaves no room for its context in windows of "
            f"{max_length} tokens that overlap by {stride}",
            row,
            hint=f"data.max_length={least}, or a smaller task.stride",
            key="data.max_length",
        )
