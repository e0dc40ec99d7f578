"""The row scores of all sizes of one run, stored as a line of JSON."""

from __future__ import annotations

import base64
import json
import math
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sora_cli.core.atomic import write_text_atomic
from sora_cli.tasks.row_scores import RowScores, row_scores

FULL, UNCUT = "full", "uncut"
"""Names of models: the run at full rank, and its checkpoint at the cut."""
_LEVELS = 32  # numbers are rounded to a 32nd of their standard deviation, or finer


@dataclass(frozen=True)
class StoredSize:
    """One size: its budget, and the sizes of its unhealed cut and of its trained adapter.

    Attributes:
        share: share of full rank's parameters that was asked for.
        max_params: the same as a number of parameters.
        cut: parameters, components and largest rank of the unhealed cut.
        healed: parameters, components and largest rank after healing.
    """

    share: float
    max_params: int
    cut: tuple[int, int, int]
    healed: tuple[int, int, int]


@dataclass(frozen=True)
class Stored:
    """The scores and sizes of one training run: everything that its decisions need.

    The pool consists of training rows that were not trained on. Its first `screening` rows were
    also scored with the unhealed cuts.

    Attributes:
        task: the recipe's name.
        seed: seed of the training.
        rows: number of rows in the pool.
        screening: number of rows that can be screening rows.
        planned: numbers of screening and test rows that the run itself takes by default.
        trained: number of rows trained on.
        full: parameters, components and largest rank at full rank.
        sizes: all sizes, from the largest to the smallest.
        lora: parameters of plain low-rank training, by model name `lora-R`.
        scores: scores on the pool of the models `full`, `healed-N` (N: number of the size) and
            `lora-R` (R: rank).
        unhealed: scores on the first rows of the models `uncut` and `cut-N`.
        reported: the metric of `full`, `healed-N` and `lora-R` on the validation split.
    """

    task: str
    seed: int
    rows: int
    screening: int
    planned: tuple[int, int]
    trained: int
    full: tuple[int, int, int]
    sizes: tuple[StoredSize, ...]
    lora: dict[str, int]
    scores: dict[str, RowScores] = field(repr=False)
    unhealed: dict[str, RowScores] = field(repr=False)
    reported: dict[str, float]

    def to_json(self) -> str:
        """Return a line of JSON; scores are rounded as `_step` says."""
        first = self.scores[FULL]
        steps = [_step(column) for column in first.parts.T]
        of_cuts = first.take(np.arange(self.screening))
        plain = {name: value for name, value in vars(self).items() if name not in _PACKED}
        plain["sizes"] = [vars(size) for size in self.sizes]
        scale = {
            "metric": first.metric,
            "formula": first.formula,
            "greater_is_better": first.greater_is_better,
            "steps": steps,
        }
        packed = {
            "scores": {
                name: _packed(scores.parts, 0 if name == FULL else first.parts, steps)
                for name, scores in self.scores.items()
            },
            "unhealed": {
                name: _packed(scores.parts, of_cuts.parts, steps)
                for name, scores in self.unhealed.items()
            },
        }
        return json.dumps({**plain, **scale, **packed}, separators=(",", ":"))

    @classmethod
    def from_json(cls, line: str) -> Stored:
        """Return the content of a line that `to_json` wrote."""
        data: dict[str, Any] = json.loads(line)
        kind = (data.pop("metric"), data.pop("formula"), data.pop("greater_is_better"))
        steps, packed = data.pop("steps"), data.pop("scores")
        zeros = np.zeros((data["rows"], len(steps)))
        first = _unpacked(packed[FULL], zeros, steps)
        of_cuts, cuts = first[: data["screening"]], data.pop("unhealed")
        parts = {n: _unpacked(text, first, steps) for n, text in packed.items() if n != FULL}
        few = {name: _unpacked(text, of_cuts, steps) for name, text in cuts.items()}
        sizes = [
            StoredSize(s["share"], s["max_params"], tuple(s["cut"]), tuple(s["healed"]))
            for s in data.pop("sizes")
        ]
        scores = {FULL: first, **parts}
        return cls(
            sizes=tuple(sizes),
            scores={name: _scores(kind, values) for name, values in scores.items()},
            unhealed={name: _scores(kind, values) for name, values in few.items()},
            planned=tuple(data.pop("planned")),
            full=tuple(data.pop("full")),
            **data,
        )


_PACKED = {"scores", "unhealed", "sizes"}


def read_all(path: Path) -> Iterator[Stored]:
    """Yield the runs stored in a file; nothing if the file does not exist."""
    if path.is_file():
        yield from map(Stored.from_json, path.read_text(encoding="utf-8").splitlines())


def write_all(path: Path, stored: Iterable[Stored]) -> None:
    """Write runs to a file, replacing its content."""
    write_text_atomic(path, "".join(f"{one.to_json()}\n" for one in stored))


def _scores(kind: tuple[str, str, bool], parts: np.ndarray) -> RowScores:
    metric, formula, greater_is_better = kind
    return row_scores(metric, formula, *parts.T, greater_is_better=greater_is_better)


def _step(column: np.ndarray) -> float:
    """Return the rounding unit of a column: 1 for whole numbers, else a power of two.

    The unit is at most a 32nd of the column's standard deviation; a constant is its own unit.
    """
    if (column == np.round(column)).all():
        return 1.0
    if (column == column[0]).all():  # the tolerance of answers that are numbers
        return float(abs(column[0]))
    # a power of two: multiples of it are exact in floats
    return float(2.0 ** math.floor(math.log2(float(column.std()) / _LEVELS)))


def _packed(parts: np.ndarray, first: np.ndarray | float, steps: list[float]) -> str:
    """Return rounded parts as compressed differences to the first model's parts."""
    # models of one run differ little: their differences are mostly zeros, which compress well
    whole = np.round(parts / steps) - np.round(np.asarray(first) / steps)
    apart = whole.astype("<i2").T.copy().view(np.uint8)  # (k, 2 x rows)
    even = np.concatenate([apart[:, 0::2], apart[:, 1::2]])  # low bytes, then high ones
    return base64.b64encode(zlib.compress(even.tobytes(), 9)).decode("ascii")


def _unpacked(text: str, first: np.ndarray, steps: list[float]) -> np.ndarray:
    rows, columns = first.shape
    raw = zlib.decompress(base64.b64decode(text))
    even = np.frombuffer(raw, np.uint8).reshape(2, columns, rows)
    apart = np.stack([even[0], even[1]], axis=-1).copy().view("<i2")[..., 0]  # (k, rows)
    return np.asarray(first + apart.T * np.asarray(steps))
