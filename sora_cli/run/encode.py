"""Rows of a split as a model takes them, and checks that the model can take them."""

from __future__ import annotations

import numpy as np
from datasets import Dataset
from torch import nn

from sora_cli.core.errors import SoraError
from sora_cli.data.places import Origin, RowError, locating
from sora_cli.model.base import Base
from sora_cli.tasks.base import Encoded, Task


def encode(
    task: Task,
    base: Base,
    rows: Dataset,
    origin: Origin,
    *,
    training: bool = False,
    may_lack: bool = False,
) -> Encoded:
    """Tokenise rows that were checked, and check the result against the model.

    Args:
        origin: where the rows come from.
        training: they are trained on, and not scored.
        may_lack: all of them may lack what could be learned or scored.

    Raises:
        SoraError: rows too long, with nothing in them, or of tokens the model has not.
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
        _check_tokens(base, encoded, pooled=task.peft_type == "SEQ_CLS")
    return encoded


def _check_not_empty(encoded: Encoded, total: int, *, may_lack: bool) -> None:
    """Refuse rows that all lack something, and a row without tokens: it has nothing to answer.

    Args:
        total: of raw rows.
    """
    lacking = {what: rows for what, rows in encoded.lacking.items() if rows}
    if sum(lacking.values()) == total and not may_lack:
        raise RowError(
            f"there is nothing to learn: {total:,} of {total:,} rows {' or '.join(lacking)}",
            hint=f"data.max_length={encoded.longest}" if encoded.truncated else None,
        )
    if encoded.lengths.min() == 0:
        raise RowError(
            "the tokenizer makes no token of it",
            int(encoded.lengths.argmin()),
            hint="take rows without text out of the data",
        )


def _check_positions(model: nn.Module, longest: int, max_length: int) -> None:
    """Refuse rows longer than a table of absolute positions; other models have no limit."""
    for path, module in model.named_modules():
        if isinstance(module, nn.Embedding) and path.endswith(("position_embeddings", "wpe")):
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
    """Check that the tokenizer's numbers are the model's.

    Args:
        pooled: one answer is read off a whole row: encoder-decoders read it where the row ends.
    """
    ids = _flat(encoded.dataset, "input_ids")
    words, largest = base.model.get_input_embeddings().num_embeddings, int(ids.max(initial=0))
    if largest >= words:
        raise SoraError(
            f"the tokenizer gives token {largest}, but the model has only {words}",
            hint="the tokenizer is another model's: put the model's own beside it",
            key="model.path",
        )
    if not (pooled and base.model.config.is_encoder_decoder):
        return
    last = base.model.config.eos_token_id
    is_end = np.isin(ids, [-1] if last is None else np.atleast_1d(last))
    ends = np.add.reduceat(is_end, _starts(encoded.lengths), dtype=np.int64)
    if ends.min() != ends.max() or ends.min() == 0:
        raise SoraError(
            f"model '{base.reference}' reads its answer at the end-of-text token, which the "
            "tokenizer does not put into each row alike",
            hint="use an encoder or a decoder, or the tokenizer that belongs to the model",
            key="model.path",
        )


def _flat(rows: Dataset, column: str) -> np.ndarray:
    """Return all numbers of a column of lists (or of lists of lists), one after the other."""
    chunks = rows.with_format("arrow").data.column(column).chunks
    return np.concatenate([chunk.flatten(recursive=True).to_numpy() for chunk in chunks])


def _starts(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64)
