"""Raw rows: their columns, checks and labels, and the model's inputs that they become."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset

from methods.words import did_you_mean
from sora_cli.core.words import listed
from sora_cli.data.overlap import input_hashes
from sora_cli.data.places import RowError
from sora_cli.data.repeats import list_hashes
from sora_cli.tasks.encoded import Encoded, Lengths
from sora_cli.tasks.family.bound import Bound

if TYPE_CHECKING:
    from sora_cli.tasks.corpus import Measured


class FamilyRows(Bound):
    """The rows of a family; call `bind` with the raw training rows before any other method."""

    input_columns: tuple[str, ...]
    """Columns of the model's input in raw rows; set by `bind`."""
    label_column: str | None
    """The label's column; None if the label is part of the input. Set by `bind`."""

    @abstractmethod
    def bind(self, train: Dataset) -> None:
        """Find the columns and the label names in the training rows."""

    def find_inputs(self, train: Dataset) -> None:
        """Find the columns of the input only, for `raw_keys`: `bind` may look at every label."""
        self.bind(train)

    @abstractmethod
    def check(self, rows: Dataset) -> None:
        """Check the raw rows of a split: a missing column or a wrong value is a `RowError`.

        This needs no model.
        """

    @abstractmethod
    def encode(self, rows: Dataset, processor: Any, *, training: bool = False) -> Encoded:
        """Turn checked rows into the model's inputs and labels.

        `sora init` calls this without a model, and so without `adapt_model` before it.

        Args:
            training: True if the rows are trained on, False if they are scored.
        """

    @abstractmethod
    def stand_in(self, rows: Dataset) -> Dataset:
        """Return raw rows with a placeholder for each label or target, replacing existing values.

        The rows can then be bound, checked and encoded like rows with labels. The placeholder does
        not change the model's inputs. For families with classes, `data.label_names` must be set. A
        missing input column is a `RowError`.
        """

    @property
    def answered_columns(self) -> tuple[str, ...]:
        """The columns of the input that an answer to a row needs."""
        return self.input_columns

    def unlabelled(self, rows: Dataset) -> Dataset:
        """Return raw rows of which nobody has said the label, with the columns of the input."""
        return rows

    def token_lengths(self, rows: Dataset, processor: Any) -> Lengths | None:
        """Count the tokens of checked rows; None for rows without tokens.

        Call it on a task whose limits are above the length of every row.
        """
        encoded = self.encode(rows, processor, training=True)
        return Lengths(encoded.lengths) if "input_ids" in encoded.dataset.column_names else None

    def raw_keys(self, rows: Dataset) -> list[np.ndarray]:
        """Return keys of raw rows, (rows,) each: rows that agree in any key have the same input."""
        return [input_hashes(rows, self.input_columns)]

    def input_keys(self, rows: Encoded, *, answers: bool = False) -> list[np.ndarray]:
        """Return keys of the rows as the model gets them, (rows,) each, as `raw_keys` does.

        Keys of rows that are trained on and of rows that are scored can be compared; the former may
        be fewer and in another order. Two rows that only differ beyond `data.max_length` are equal.

        Args:
            answers: of families that write texts: a row's given answer belongs to its input.
        """
        return [list_hashes(rows.dataset, "input_ids")]

    def shared_part(self, rows: Encoded) -> tuple[str, np.ndarray] | None:
        """Return the name and keys (rows,) of a part of the input that rows have in common.

        None: the family has no such part, and rows with different inputs count as independent.
        """
        return None

    def corpus_tokens(self, processor: Any) -> Measured | None:
        """Return the tokens of the corpus; None: there is none."""
        return None

    def some_documents(self, processor: Any, numbers: np.ndarray) -> Encoded | None:
        """Return documents of the corpus as the model reads them; None: there is no corpus."""
        return None

    def template(self, processor: Any) -> str | None:
        """Describe the template of a row's text; None if the columns are used unchanged."""
        return None

    def remarks(self, parts: Mapping[str, Encoded]) -> list[str]:
        """Return further remarks on the encoded rows, for the user.

        Args:
            parts: by name: "train", and the scored splits.
        """
        return []

    def labels(self, rows: Encoded) -> np.ndarray | None:
        """Return each row's label, (rows,); None for families without one label per row."""
        return np.asarray(rows.dataset["labels"][:]) if self.options.ONE_LABEL else None

    def class_counts(self, rows: Encoded) -> np.ndarray | None:
        """Count the rows of each class, (classes,); None if there are no classes."""
        names, labels = self.label_names, self.labels(rows)
        if names is None or labels is None:
            return None
        return np.bincount(labels, minlength=len(names))

    @property
    def label_names(self) -> list[str] | None:
        """Names of the classes in label order; None if there are no classes."""
        return None

    def find_columns(self, columns: Sequence[str], parts: Sequence[str]) -> dict[str, str]:
        """Return the column of each part: from `data.columns`, else a column with a usual name.

        A part without a column is left out; a column that `data.columns` names must exist.
        """
        by_part = {}
        for part in parts:
            named = self.data.columns.get(part)
            if named is not None and named not in columns:
                raise RowError(
                    f"data.columns.{part}: no column '{named}'; {did_you_mean(named, columns)}",
                    key=f"data.columns.{part}",
                )
            usual = (name for name in self.options.COLUMNS[part] if name in columns)
            column = named or next(usual, None)
            if column is not None:
                by_part[part] = column
        return by_part

    def part_column(self, columns: Sequence[str], part: str) -> str:
        """Return the column of a part; if it does not exist, the name that it would have."""
        usual = self.options.COLUMNS[part]
        return self.data.columns.get(part) or next((n for n in usual if n in columns), usual[0])

    def require_columns(self, columns: Sequence[str], parts: Sequence[str]) -> dict[str, str]:
        """Return the column of each part, as `find_columns` does, but require one for each part."""
        by_part = self.find_columns(columns, parts)
        for part in parts:
            if part not in by_part:
                raise RowError(
                    f"no column for '{part}' among {listed(columns)}",
                    hint=f"data.columns.{part}=COLUMN",
                )
        return by_part
