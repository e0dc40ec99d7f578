"""Encode a split's rows as model inputs, and check them against the model."""

from __future__ import annotations

import numpy as np
from datasets import Dataset
from torch import nn

from sora_cli.core.errors import SoraError
from sora_cli.data.places import Origin, RowError, locating
from sora_cli.model.base import Base
from sora_cli.tasks.base import Task
from sora_cli.tasks.encoded import Encoded


def encode(
    task: Task,
    base: Base,
    rows: Dataset,
    origin: Origin,
    *,
    training: bool = False,
    may_lack: bool = False,
) -> Encoded:
    """Tokenise checked rows, and check the result against the model.

    Refuses rows longer than the model's positions, rows without tokens, and token ids that the
    model does not have.

    Args:
        origin: file or data set of the rows, for error messages.
        training: True for training rows; False for rows that are only scored.
        may_lack: accept a split in which no row has anything to learn or score.
    """
    with locating(origin):
        try:
            encoded = task.encode(rows, base.processor, training=training)
        except RowError:
            raise
        except SoraError as error:
            place = f"split '{origin.split}'" if origin.split else origin.place(None)
            error.where = f"{place}; {error.where}" if error.where else place
            raise
        _check_not_empty(encoded, len(rows), may_lack=may_lack)
    if "input_ids" in encoded.dataset.column_names:
        _check_positions(base.model, int(encoded.lengths.max()), task.data.max_length)
        _check_tokens(base, encoded, pooled=task.options.PEFT_TYPE == "SEQ_CLS")
    corpus = None if training else task.corpus_tokens(base.processor)
    if corpus is not None:
        _check_positions(base.model, int(corpus.lengths.max()), task.data.max_length)
        _check_largest(base, corpus.largest)
    return encoded


def _check_not_empty(encoded: Encoded, total: int, *, may_lack: bool) -> None:
    """Refuse a split in which no row has anything to learn, and any row without tokens.

    Args:
        total: number of rows before encoding.
    """
    lacking = {what: rows for what, rows in encoded.lacking.items() if rows}
    if sum(lacking.values()) == total and not may_lack:
        raise RowError(
            f"there is nothing to learn: {total:,} of {total:,} rows {' or '.join(lacking)}",
            hint=f"data.max_length={encoded.longest}" if encoded.truncated else None,
        )
    if encoded.lengths.min() == 0:
        raise RowError(
            "the tokenizer makes no token of the row's text",
            int(encoded.lengths.argmin()),
            hint="take rows without text out of the data",
        )


def _check_positions(model: nn.Module, longest: int, max_length: int) -> None:
    """Refuse rows longer than the model's table of absolute positions; without one, accept all."""
    for path, module in model.named_modules():
        if isinstance(module, nn.Embedding) and path.endswith(("position_embeddings", "wpe")):
            # RoBERTa and its relatives count positions from padding_idx + 1; "wpe" is GPT-2's table
            first = 0 if module.padding_idx is None else module.padding_idx + 1
            usable = module.num_embeddings - first
            if longest > usable:
                raise SoraError(
                    f"rows of {longest} tokens do not fit the model, which has {usable} positions",
                    where=f"data.max_length is {max_length}",
                    hint=f"data.max_length={usable}",
                    key="data.max_length",
                )


def _check_tokens(base: Base, encoded: Encoded, *, pooled: bool) -> None:
    """Check that every token id exists in the model's embedding.

    Args:
        pooled: the task makes one prediction per row. Encoder-decoders read it at the end-of-text
            token, so every row must have the same number of them, and at least one.
    """
    ids = flat_column(encoded.dataset, "input_ids")
    _check_largest(base, int(ids.max(initial=0)))
    if not (pooled and base.model.config.is_encoder_decoder):
        return
    last = base.model.config.eos_token_id
    is_end = np.isin(ids, [-1] if last is None else np.atleast_1d(last))
    # reduceat is wrong for rows of length 0: `_check_not_empty` has refused them
    ends = np.add.reduceat(is_end, _starts(encoded.lengths), dtype=np.int64)
    if ends.min() != ends.max() or ends.min() == 0:
        raise SoraError(
            f"model '{base.reference}' answers at the end-of-text token, but not all rows have the "
            "same number of these tokens",
            hint="use the model's own tokenizer, or an encoder or a decoder",
            key="model.path",
        )


def _check_largest(base: Base, largest: int) -> None:
    words = base.model.get_input_embeddings().num_embeddings
    if largest >= words:
        raise SoraError(
            f"the tokenizer gives token {largest}, but the model has only {words} tokens",
            hint="it is another model's tokenizer: put the model's own into the model's directory",
            key="model.path",
        )


def flat_column(rows: Dataset, column: str) -> np.ndarray:
    """Return all numbers in a column of lists (or of lists of lists) as one flat array."""
    chunks = rows.with_format("arrow").data.column(column).chunks
    return np.concatenate([chunk.flatten(recursive=True).to_numpy() for chunk in chunks])


def _starts(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64)
