"""Rows of a chosen and a rejected answer to a prompt, as tokens of both."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import Dataset

from sora_cli.data.places import RowError
from sora_cli.recipe.task_options import PairOptions
from sora_cli.tasks.answer_rows import INPUTS, ROUNDING, AnswerRows, as_text
from sora_cli.tasks.causal_lm import for_row
from sora_cli.tasks.dialogues import Row, learned_tokens, prompt_hashes, rows_of
from sora_cli.tasks.encoded import NO_EXAMPLES, Encoded, Predictions
from sora_cli.tasks.messages import chat_rows
from sora_cli.tasks.pairs import SIDES, is_unpaired, unpaired
from sora_cli.tasks.prompts import Dialogue
from sora_cli.tasks.questions import Questions
from sora_cli.tasks.stand_ins import check_finite

_SHOWN = (("answer_a", "a"), ("answer_b", "b"))
"""Columns of the two answers where nobody has said which is the better one, and their labels."""


class PairRows(AnswerRows):
    """The rows of a family that learns from a chosen and a rejected answer."""

    sides = SIDES
    options: PairOptions

    def bind(self, train: Dataset) -> None:
        columns = train.column_names
        if is_unpaired(columns) and not set(SIDES) <= set(self.find_columns(columns, SIDES)):
            raise unpaired(columns)
        super().bind(train)

    def stand_in(self, rows: Dataset) -> Dataset:
        return rows

    def input_keys(self, rows: Encoded, *, answers: bool = False) -> list[np.ndarray]:
        """Return a key of the prompt's tokens, as the chosen answer follows them."""
        table = rows.dataset.select_columns(list(INPUTS)).with_format("arrow")[:]
        chosen = np.arange(0, 2 * len(rows.dataset), 2)
        ids, labels = (table[n].combine_chunks().flatten().take(chosen) for n in INPUTS)
        return [prompt_hashes(ids, labels)]

    def encode(self, rows: Dataset, processor: Any, *, training: bool = False) -> Encoded:
        read = chat_rows(rows, self._columns.values())
        pairs = [for_row(i, self._dialogues, row, processor) for i, row in enumerate(read)]
        made = rows_of([dialogue for pair in pairs for dialogue in pair], processor)
        limit = self.data.max_length
        whole = list(zip(made[::2], made[1::2], strict=True))
        cut = [_cut(pair, limit) for pair in whole]
        equal = [a == b for a, b in cut]
        for i, pair in enumerate(cut):
            if not all(map(learned_tokens, pair)):
                raise RowError("an answer has no token", i)
        shorter = sum(
            learned_tokens(a) < learned_tokens(b)
            for before, after in zip(whole, cut, strict=True)
            for a, b in zip(after, before, strict=True)
        )
        longest = [max(len(side["input_ids"]) for side in pair) for pair in whole]
        kept = [pair for pair, same in zip(cut, equal, strict=True) if not (same and training)]
        same = sum(a == b for a, b in whole)
        alike = {
            "have two equal answers": same,
            f"have two answers that are equal within data.max_length={limit}": sum(equal) - same,
        }
        effect = "and are left out" if training else "so that neither is preferred"
        remarks = {f"{what}, {effect}": rows for what, rows in alike.items()}
        lacking, notes = (remarks, {}) if training else ({}, remarks)
        return Encoded(
            Dataset.from_list([_both(pair) | self.unknown for pair in kept or cut]),
            np.array([max(len(side["input_ids"]) for side in pair) for pair in kept or cut]),
            truncated=sum(n > limit for n in longest),
            longest=max(longest),
            examples=NO_EXAMPLES if training else self._examples(pairs),
            lacking=lacking,
            notes={
                **notes,
                f"answers lose their ends at data.max_length={limit}": shorter,
                **Counter(remark for remarks in map(_remarks, pairs) for remark in remarks),
            },
        )

    @property
    def unknown(self) -> dict[str, Any]:
        """Further columns of encoded rows, whose values are not known yet."""
        return {}

    def questions(self, rows: Dataset, order: np.random.Generator) -> Questions | None:
        columns = [self._columns[part] for part in self._texts]
        texts = {column: [as_text(value) for value in rows[column][:]] for column in columns}
        first = order.integers(2, size=len(rows))  # the side that stands first
        shown = {c: texts[c] for c in columns if c not in map(self._columns.get, SIDES)}
        sides = list(zip(*(texts[self._columns[side]] for side in SIDES), strict=True))
        for i, (column, _) in enumerate(_SHOWN):
            shown[column] = [both[at ^ i] for both, at in zip(sides, first, strict=True)]
        labels = [label for _, label in _SHOWN]
        answers = [{label: SIDES[at ^ i] for i, label in enumerate(labels)} for at in first]
        return Questions(shown, answers)

    def unlabelled(self, rows: Dataset) -> Dataset:
        named = {
            column: self._columns[side] for (column, _), side in zip(_SHOWN, SIDES, strict=True)
        }
        there = set(rows.column_names)
        return (
            rows.rename_columns(named)
            if {*named} <= there and not {*named.values()} & there
            else rows
        )

    def metrics(self, predictions: Predictions) -> dict[str, float]:
        columns = self._by_row(predictions)
        return {
            name: float(values.mean()) if np.isfinite(columns["loss"]).all() else math.nan
            for name, values in columns.items()
            if name in self.metric_names
        }

    def row_parts(self, predictions: Predictions) -> tuple[Any, ...]:
        columns = self._by_row(predictions)
        values, broken = columns[self.best], not np.isfinite(columns["loss"]).all()
        kind = "right" if self.best == "rewards/accuracies" else "mean"
        return kind, np.full(len(values), math.nan) if broken else values

    def answer_columns(self, predictions: Predictions) -> list[Sequence[Any]]:
        check_finite(predictions.outputs)
        prefers = [SIDES[int(not right)] for right in self._prefers_chosen(predictions)]
        return [prefers, *self._rewards(predictions).T.tolist()]

    def readable(self, predictions: Predictions) -> list[dict[str, Any]]:
        reward, texts = self._rewards(predictions), predictions.encoded.examples
        prefers = self._prefers_chosen(predictions)
        return [
            {
                "source": row["source"],
                "prediction": row[SIDES[int(not preferred)]],
                "label": row["chosen"],
                "rejected": row["rejected"],
                "rewards": {"chosen": float(right), "rejected": float(wrong)},
                "margin": float(right - wrong),
            }
            for row, (right, wrong), preferred in zip(texts, reward, prefers, strict=True)
        ]

    def _prefers_chosen(self, predictions: Predictions) -> np.ndarray:
        """Return whether the chosen answer's reward is larger by more than rounding, (rows,)."""
        reward, sizes = self._rewards(predictions), self._magnitudes(predictions)
        return np.asarray(reward[:, 0] - reward[:, 1] > ROUNDING * sizes.sum(axis=1))

    @abstractmethod
    def _by_row(self, predictions: Predictions) -> dict[str, np.ndarray]:
        """Return every metric by row, (rows,) each; a row is right if its answer is preferred."""

    @abstractmethod
    def _rewards(self, predictions: Predictions) -> np.ndarray:
        """Return the reward of each answer, (rows, 2)."""

    @abstractmethod
    def _magnitudes(self, predictions: Predictions) -> np.ndarray:
        """Return the sizes of what each reward is computed from, (rows, 2): they round it."""

    def _examples(self, pairs: Sequence[Sequence[Dialogue]]) -> Dataset:
        columns = {"source": ["".join(first.prompt) for first, _ in pairs]}
        columns |= {side: [pair[i].reference for pair in pairs] for i, side in enumerate(SIDES)}
        return Dataset.from_dict(columns)


def _remarks(pair: Sequence[Dialogue]) -> set[str]:
    """Return the remarks on a pair: each counts its rows, whether of one answer or of both."""
    return {remark for dialogue in pair for remark in dialogue.remarks}


def _cut(pair: tuple[Row, Row], limit: int) -> tuple[Row, Row]:
    """Shorten both answers of a pair to at most `limit` tokens, with the same prompt.

    The ends of the answers are cut off. A prompt that would leave less than half of the tokens to
    the longer answer loses its beginning first.
    """
    longest = max(len(row["input_ids"]) for row in pair)
    if longest <= limit:
        return pair
    learned = max(map(learned_tokens, pair))
    front = max(longest - learned + min(learned, limit // 2) - limit, 0)
    both = [{name: row[name][front : front + limit] for name in INPUTS} for row in pair]
    return both[0], both[1]


def _both(pair: tuple[Row, Row]) -> dict[str, Any]:
    return {name: [row[name] for row in pair] for name in INPUTS}
