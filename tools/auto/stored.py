"""Scores row by row of all sizes of one run, as a line of JSON."""

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
_LEVELS = 32  # steps that a standard deviation of a number is stored in


@dataclass(frozen=True)
class StoredSize:
    """A size of the ladder: what screening saw, and what the trained candidate has.

    Attributes:
        share, max_params: of the ladder.
        cut: parameters, components and largest rank of the unhealed cut.
        healed: the same of the candidate.
    """

    share: float
    max_params: int
    cut: tuple[int, int, int]
    healed: tuple[int, int, int]


@dataclass(frozen=True)
class Stored:
    """Everything that deciding on one training run needs.

    The rows are a pool of training rows that were not trained on. The first `screening` of them
    were scored with the unhealed cuts, too.

    Attributes:
        task: the recipe's name.
        seed: of the training.
        rows: of the pool.
        screening: those that may screen.
        planned: rows that screen and rows that test in the run itself, without a word on rows.
        trained: rows trained on.
        full: parameters, components and largest rank at full rank.
        sizes: the largest first.
        lora: parameters of plain low-rank training, by rank.
        scores: of the models `full`, `healed-N` (a size's number) and `lora-R` on the pool.
        unhealed: of the models `uncut` and `cut-N` on the first rows.
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
        """Return a line. Numbers are rounded to a 32nd of their standard deviation or finer."""
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
        """Read a line."""
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
            scores={name: _scores(kind, found) for name, found in scores.items()},
            unhealed={name: _scores(kind, found) for name, found in few.items()},
            planned=tuple(data.pop("planned")),
            full=tuple(data.pop("full")),
            **data,
        )


_PACKED = {"scores", "unhealed", "sizes"}


def read_all(path: Path) -> Iterator[Stored]:
    """Yield the lines of a file; nothing if there is none."""
    if path.is_file():
        yield from map(Stored.from_json, path.read_text(encoding="utf-8").splitlines())


def write_all(path: Path, stored: Iterable[Stored]) -> None:
    """Write a file anew."""
    write_text_atomic(path, "".join(f"{one.to_json()}\n" for one in stored))


def _scores(kind: tuple[str, str, bool], parts: np.ndarray) -> RowScores:
    metric, formula, greater_is_better = kind
    return row_scores(metric, formula, *parts.T, greater_is_better=greater_is_better)


def _step(column: np.ndarray) -> float:
    """Return what a column is rounded to: a power of two, 1 for whole numbers."""
    if (column == np.round(column)).all():
        return 1.0
    return float(2.0 ** math.floor(math.log2(float(column.std()) / _LEVELS)))


def _packed(parts: np.ndarray, first: np.ndarray | float, steps: list[float]) -> str:
    """Return parts, rounded, as differences to the first model's, compressed."""
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
