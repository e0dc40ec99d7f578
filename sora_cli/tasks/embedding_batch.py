"""Batches of queries and documents, and a step's passes over parts of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor, nn

from sora_cli.core.device import device_type, process_state
from sora_cli.data.processor import pad_inputs
from sora_cli.tasks.embedding_rows import IDS
from sora_cli.tasks.embedding_scores import NO_TEXT

KEYS, SCORE = "keys", "score"
"""Columns of rows that are trained on, beside tokens: a hash of each text's, and a pair's score."""
QUERIES, DOCUMENTS = "query", "documents"
"""Beginnings of names in a batch: the two sides, which are padded, and read, apart."""
PASS = 64
"""Tokens of padding for which texts of one side are read apart, by one process on a CPU.

A pass costs an accelerator far more of its tokens: there each side is one part. So it is in several
processes, which must run the model equally often: DDP shares its buffers in each pass.
"""
HELD = "held"
"""Column and name in a batch: numbers of documents whose vectors the base model has made."""
_SLOTS = "slots"  # the place of each document in a table of (rows, k)
_ORDER = "order"  # ends the name of the places of a side's texts, as the parts hold them


@dataclass(frozen=True)
class TextBatches:
    """The collator: pads the queries of rows and their documents apart, or single texts."""

    tokenizer: Any

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Return the inputs of queries and documents (see `inputs_of`) and `keys` (n, 1 + k).

        A row may have fewer than k documents. In place of documents whose vectors are there, a
        batch has their numbers (texts,). Of single texts the batch is (texts, tokens).
        """
        if KEYS not in rows[0]:
            return self._padded([row[IDS] for row in rows])
        batch = self._parts(QUERIES, [row[IDS][0] for row in rows])
        if HELD in rows[0]:
            batch[HELD] = torch.tensor([number for row in rows for number in row[HELD]])
        else:
            batch |= self._parts(DOCUMENTS, [ids for row in rows for ids in row[IDS][1:]])
        batch[KEYS] = torch.tensor([row[KEYS] for row in rows])
        batch[_SLOTS] = (batch[KEYS][:, 1:] != NO_TEXT).flatten().nonzero()[:, 0]
        if SCORE in rows[0]:
            batch[SCORE] = torch.tensor([row[SCORE] for row in rows])
        return batch

    def _parts(self, side: str, ids: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        lengths = np.array([len(own) for own in ids])
        if device_type() == "cpu" and process_state().num_processes == 1:
            parts = list(of_like_length(lengths, np.argsort(-lengths, kind="stable")))
        else:
            parts = [np.arange(len(ids))]
        batch = {f"{side}_{_ORDER}": torch.from_numpy(np.argsort(np.concatenate(parts)))}
        for number, part in enumerate(parts):
            padded = self._padded([ids[place] for place in part])
            batch |= {f"{side}_{number}_{name}": tensor for name, tensor in padded.items()}
        return batch

    def _padded(self, ids: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        return pad_inputs(self.tokenizer, [{IDS: own} for own in ids])


def of_like_length(lengths: np.ndarray, order: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the parts of texts that are read together: apart where that saves `PASS` tokens.

    Args:
        lengths: tokens of each text. order: numbers of texts, the longest first.
    """
    longest = lengths[order]
    saved = np.arange(len(order), 0, -1) * (longest[:1] - longest)  # by a cut before each text
    cut = int(saved.argmax())
    if saved[cut] <= PASS:
        yield order
    else:
        yield from of_like_length(lengths, order[:cut])
        yield from of_like_length(lengths, order[cut:])


def inputs_of(batch: Mapping[str, Any], side: str) -> list[dict[str, Tensor]]:
    """Return the model's inputs, (texts, tokens), for each part of a batch's texts of one side."""
    found: list[dict[str, Tensor]] = []
    while named := [name for name in batch if name.startswith(f"{side}_{len(found)}_")]:
        found.append({n.removeprefix(f"{side}_{len(found)}_"): batch[n] for n in named})
    return found


def in_order(parts: Sequence[Tensor], batch: Mapping[str, Any], side: str) -> Tensor:
    """Return the vectors of all texts of one side, (texts, d), in the order of the rows."""
    return torch.cat(list(parts)).index_select(0, batch[f"{side}_{_ORDER}"])


def in_rows(queries: Tensor, documents: Tensor, batch: Mapping[str, Any]) -> Tensor:
    """Return the vectors of each row, (n, 1 + k, d), zeros where a row has no further document."""
    rows, width = len(queries), batch[KEYS].shape[1] - 1
    table = documents.new_zeros(rows * width, documents.shape[1])
    table = table.index_copy(0, batch[_SLOTS], documents)
    return torch.cat([queries[:, None], table.view(rows, width, -1)], dim=1)


def by_side(rows: Tensor, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Undo `in_rows`: return the queries' numbers (n, d) and the documents' (texts, d)."""
    return rows[:, 0], rows[:, 1:].flatten(0, 1).index_select(0, batch[_SLOTS])


def of_all_processes(parts: Sequence[Sequence[Tensor]]) -> tuple[list[Tensor], int]:
    """Join each list over micro-batches and processes; also return this process's first row."""
    state = process_state()
    if state.num_processes == 1:
        return [torch.cat(list(part)) for part in parts], 0
    own = [torch.cat(list(part)).cpu() if part else None for part in parts]
    every = gather_object([own])
    rows = [0 if one[0] is None else len(one[0]) for one in every]
    whole = ([one[i] for one in every if one[i] is not None] for i in range(len(parts)))
    joined = [torch.cat(part).to(state.device) for part in whole]
    return joined, sum(rows[: state.process_index])


def passed_back(total: Tensor, model: nn.Module) -> Tensor:
    """Return a zero with the gradients of a sum, whose graph is no longer needed after this.

    The memory of a pass is then free for the next one, before the trainer has the loss of both.
    """
    device = total.device.type
    # fp16 needs the factor that the trainer's scaler puts on the loss: the graph stays
    scaled = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16
    if scaled or not total.requires_grad:
        return total
    learned = [p for p in model.parameters() if p.requires_grad]
    with torch.autocast(device, enabled=False):
        made = torch.autograd.grad(total, learned, allow_unused=True)
    known = [(p, g) for p, g in zip(learned, made, strict=True) if g is not None]
    zero: Tensor = _Known.apply([g for _, g in known], *(p for p, _ in known))  # type: ignore[no-untyped-call]
    return zero


class _Known(torch.autograd.Function):
    """A zero whose gradients by some parameters are known."""

    @staticmethod
    def forward(ctx: Any, gradients: Sequence[Tensor], *parameters: Tensor) -> Tensor:
        ctx.gradients = gradients
        return parameters[0].new_zeros(())

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        return None, *(gradient * outer[0].to(gradient.dtype) for gradient in ctx.gradients)
