"""Dialogues as token ids and labels: training rows of a causal language model, and prompts.

Packing puts several short rows into a long row; positions that start again at 0 separate them. Each
row goes to the bin with the least room that it fits into (best fit, longest row first) and is never
cut. Models that build their attention mask from the positions (transformers' `create_causal_mask`)
separate packed rows exactly; `decoders.check_packing` tests a model for this.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import torch
from torch.nn.utils.rnn import pad_sequence

from sora_cli.data.repeats import hashes_of
from sora_cli.tasks.language import IGNORED
from sora_cli.tasks.learned import LEARNED, learned_places
from sora_cli.tasks.prompts import Dialogue


def rows_of(dialogues: Sequence[Dialogue], tokenizer: Any) -> list[Row]:
    """Return the token ids and labels of each dialogue; tokens that are not learned are ignored.

    A learned piece ends with the tokenizer's end-of-text token, if there is one.
    """
    texts = [text for dialogue in dialogues for text, _ in dialogue.pieces]
    ids = iter(_ids_of(texts, tokenizer))
    return [_encode(dialogue, ids, tokenizer) for dialogue in dialogues]


def prompts_of(dialogues: Sequence[Dialogue], tokenizer: Any, *, limit: int) -> list[list[int]]:
    """Return the token ids before each dialogue's last answer: at most the last `limit`."""
    ids = iter(_ids_of([text for d in dialogues for text in d.prompt], tokenizer))
    prompts = []
    for dialogue in dialogues:
        start = _start_tokens(dialogue.prompt[0], tokenizer)
        pieces = [next(ids) for _ in dialogue.prompt]
        prompts.append([*start, *(token for piece in pieces for token in piece)][-limit:])
    return prompts


def cut(row: Row, limit: int) -> Row:
    """Shorten a row to at most `limit` tokens.

    The end of the answer is cut off. A prompt that would leave less than half of the tokens to the
    answer loses its beginning first.
    """
    if len(row["input_ids"]) <= limit:
        return row
    prompt = next((i for i, label in enumerate(row["labels"]) if label != IGNORED), 0)
    answer = min(len(row["input_ids"]) - prompt, limit // 2)
    front = max(prompt + answer - limit, 0)
    shorter = {name: values[front : front + limit] for name, values in row.items()}
    shorter["labels"][:1] = [IGNORED]  # the token before it was cut off
    return shorter


def learned_tokens(row: Row) -> int:
    """Count the learned tokens of a row."""
    return len(row["labels"]) - row["labels"].count(IGNORED)


def prompt_hashes(
    ids: pa.ListArray, labels: pa.ListArray, *, whole: bool = False, end: int | None = None
) -> np.ndarray:
    """Return a hash of the tokens before each row's last answer, (rows,).

    Args:
        ids, labels: lists of numbers, one for each row.
        whole: hash all tokens of each row.
        end: end-of-text token; at the end of a whole row it is left out.
    """
    tokens, lengths = ids.flatten(), ids.value_lengths().to_numpy().astype(np.int64)
    ends = np.cumsum(lengths)
    starts = ends - lengths
    if whole:
        flat = tokens.to_numpy()
        ends -= (flat[ends - 1] == (-1 if end is None else end)) & (lengths > 0)
    else:
        learned = labels.flatten().to_numpy() != IGNORED
        # the first token of a row is never learned, so each answer begins after another token
        begins = np.flatnonzero(learned[1:] & ~learned[:-1]) + 1
        last = np.searchsorted(begins, ends) - 1  # of the answers that begin before a row's end
        found = np.where(last >= 0, begins[np.maximum(last, 0)] if len(begins) else -1, -1)
        ends = np.where(found >= starts, found, ends)
    kept = np.repeat(ends, lengths) > np.arange(len(tokens))
    offsets = np.concatenate([[0], np.cumsum(ends - starts)])
    return hashes_of(pa.ListArray.from_arrays(offsets.astype(np.int32), tokens.filter(kept)))


def apart(lists: pa.ListArray, positions: pa.ListArray) -> pa.ListArray:
    """Return the lists of packed rows as one list for each text, which begins at position 0."""
    starts = np.flatnonzero(positions.flatten().to_numpy() == 0)
    offsets = np.append(starts, len(positions.flatten())).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, lists.flatten())


class Padding:
    """The collator of rows of `input_ids` and `labels`; batches of packed rows have no mask.

    Each padding token of packed rows has the position 0, which separates it from all other tokens.
    """

    def __init__(self, pad: int) -> None:
        self.values = {"input_ids": pad, "labels": IGNORED, "position_ids": 0}

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = {
            name: pad_sequence([torch.tensor(row[name]) for row in rows], True, float(value))
            for name, value in self.values.items()
            if name in rows[0]
        }
        if "position_ids" not in batch:
            masks = [torch.ones(len(row["input_ids"]), dtype=torch.long) for row in rows]
            batch["attention_mask"] = pad_sequence(masks, True)
        return {**batch, LEARNED: learned_places(batch["labels"]), "use_cache": False}


def _encode(dialogue: Dialogue, ids: Iterator[list[int]], tokenizer: Any) -> Row:
    start = _start_tokens(dialogue.pieces[0][0], tokenizer)
    row: Row = {"input_ids": start, "labels": [IGNORED] * len(start)}
    for text, learned in dialogue.pieces:
        tokens = list(next(ids))
        ended = tokenizer.eos_token and text.endswith(tokenizer.eos_token)
        if learned and not ended and tokenizer.eos_token_id is not None:
            tokens.append(tokenizer.eos_token_id)
        row["input_ids"] += tokens
        row["labels"] += tokens if learned else [IGNORED] * len(tokens)
    row["labels"][:1] = [IGNORED]  # no token before it predicts it
    return row


def _ids_of(texts: Sequence[str], tokenizer: Any) -> list[list[int]]:
    made = tokenizer(list(texts), add_special_tokens=False, verbose=False)
    ids: list[list[int]] = made["input_ids"]
    return ids


def puts_start(tokenizer: Any) -> bool:
    """Return True if the tokenizer puts its start token before every text."""
    first = tokenizer.bos_token_id
    # a tokenizer may have such a token and not use it, so look at a real text
    return first is not None and tokenizer("a")["input_ids"][:1] == [first]


def _start_tokens(text: str, tokenizer: Any) -> list[int]:
    """Return the token that the tokenizer puts before every text; none if the text contains it."""
    if tokenizer.bos_token_id is None or text.startswith(tokenizer.bos_token):
        return []
    return [tokenizer.bos_token_id] if puts_start(tokenizer) else []


Row = dict[str, list[int]]


def bins(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Group rows into bins: the lengths in a bin add up to at most `size`.

    Args:
        lengths: of each row; none above `size`.

    Returns:
        The row numbers in each bin.
    """
    open_: list[tuple[int, int]] = []  # (room, number of the bin), sorted
    made: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        at = bisect_left(open_, (lengths[row], -1))  # the bin with the least sufficient room
        room, number = open_.pop(at) if at < len(open_) else (size, len(made))
        if number == len(made):
            made.append([])
        made[number].append(row)
        insort(open_, (room - lengths[row], number))
    return [sorted(rows) for rows in made]


def packed(rows: Sequence[Row], size: int) -> list[Row]:
    """Pack rows of `input_ids` and `labels` into fewer rows, with `position_ids`.

    The first label of each row must be ignored; otherwise it is predicted from the row before.
    """
    result = []
    for members in bins([len(row["input_ids"]) for row in rows], size):
        together: Row = {"input_ids": [], "labels": [], "position_ids": []}
        for row in (rows[i] for i in members):
            together["input_ids"] += row["input_ids"]
            together["labels"] += row["labels"]
            together["position_ids"] += range(len(row["input_ids"]))
        result.append(together)
    return result
