"""Examples of right and wrong predictions of a run.

They come from the file of `sora eval --predictions`, of any task family. The fields of a record
decide how it is judged: a class or text is right or wrong (with logits, ordered by probability), a
pair of answers is won or lost by the margin of its rewards, a thumb is ordered by its reward, a
number by its distance to the label, a record without a prediction by its loss.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sora_cli.core.errors import SoraError, reason
from sora_cli.core.shell import quote
from sora_cli.report import RunReport

FILE_NAME = "predictions.jsonl"
"""Name of the predictions file in a run's directory."""
_LONGEST = 600
"""Longest text, in characters; longer texts are cut."""
Record = Mapping[str, Any]


@dataclass(frozen=True)
class Example:
    """A row with its prediction, as texts.

    Attributes:
        row: index in its split, from 0.
        texts: the model's input, by column.
        sureness: probability, distance or loss of the prediction; "" if unknown.
    """

    row: int
    texts: tuple[tuple[str, str], ...]
    label: str
    prediction: str
    sureness: str


@dataclass(frozen=True)
class Examples:
    """Examples of one kind, such as "Wrong, the surest first"."""

    title: str
    shown: tuple[Example, ...]


@dataclass(frozen=True)
class Judged:
    """A predicted row with its verdict.

    Attributes:
        right: True if the prediction equals the label; None if it is only nearer or farther.
        order: sort key: probability, distance to the label, or loss; NaN if unknown.
        unit: name of the sort key.
    """

    record: Record
    right: bool | None
    order: float
    unit: str


def read_records(file: Path) -> list[dict[str, Any]]:
    """Read a file that `sora eval --predictions` wrote."""
    hint = f"sora eval RUN --recipe RECIPE --predictions {quote(str(file))}"
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
        records = [json.loads(line) for line in lines if line.strip()]
    except OSError as error:
        raise SoraError(f"{file} cannot be read: {reason(error, file)}", hint=hint) from error
    except (ValueError, RecursionError) as error:
        raise SoraError(f"{file} is not JSON, line by line", hint=hint) from error
    if not records or not all(_is_record(record) for record in records):
        raise SoraError(f"{file} holds no predictions", hint=hint)
    return records


def _is_record(record: Any) -> bool:
    return (
        isinstance(record, dict)
        and isinstance(record.get("split"), str)
        and isinstance(record.get("row"), int)
        and "label" in record
    )


def choose(records: Sequence[Record], most: int) -> tuple[str, list[Examples]]:
    """Return a summary line and examples: right and wrong rows, or rows of large and small error.

    Args:
        records: of one split.
        most: largest number of examples of each kind.
    """
    judged = [judge(record) for record in records]
    if all(one.right is None for one in judged):
        ordered = sorted((one for one in judged if not math.isnan(one.order)), key=_order)
        unit = ordered[0].unit if ordered else "error"
        far, near = ordered[::-1][:most], ordered[:most]
        return f"{len(records):,} rows, ordered by their {unit}", [
            Examples(f"The largest {unit}", _examples(far)),
            Examples(f"The smallest {unit}", _examples(near)),
        ]
    wrong = sorted((one for one in judged if one.right is False), key=_order, reverse=True)
    right = sorted((one for one in judged if one.right), key=_order)
    ranked = any(one.unit for one in judged)
    share = len(right) / (len(wrong) + len(right))
    line = f"{len(right):,} of {len(wrong) + len(right):,} rows are right ({share:.1%})"
    return line, [
        Examples("Wrong" + ", the surest first" * ranked, _examples(wrong[:most])),
        Examples("Right" + ", the least sure first" * ranked, _examples(right[:most])),
    ]


def disagreement(report: RunReport, split: str, records: Sequence[Record]) -> str | None:
    """Return the reason why predictions cannot belong to the report; None if they agree."""
    rows = report.data.rows.get(split)
    if rows is not None and rows != len(records):
        return f"these are predictions of {len(records):,} rows; the report's {split} has {rows:,}"
    judged = [judge(record).right for record in records]
    metrics = report.metrics.get(split, {})
    stated = metrics.get("accuracy", metrics.get("rewards/accuracies"))
    if stated is None or None in judged or math.isnan(stated):
        return None
    if any(isinstance(record["label"], list) for record in records):
        return None  # for sequences of labels the report's accuracy counts words, not rows
    accuracy = sum(map(bool, judged)) / len(judged)
    # one row more or less changes the accuracy by 1/n: within half of that it is the same number
    if abs(accuracy - stated) < 0.5 / len(judged):
        return None
    return f"these predictions have accuracy {accuracy:.4f}, the report says {stated:.4f}"


def judge(record: Record) -> Judged:
    """Judge a prediction by the fields of its record: logits, numbers, loss or text."""
    prediction, label = record.get("prediction"), record["label"]
    logits = record.get("logits")
    if isinstance(logits, list) and logits:
        return Judged(record, prediction == label, probability(logits), "probability")
    margin = record.get("margin")
    if isinstance(margin, int | float):
        return Judged(record, margin > 0, abs(margin), "margin of the rewards")
    reward = record.get("reward")
    if isinstance(reward, int | float):
        return Judged(record, prediction == label, abs(reward), "distance of the reward from 0")
    if isinstance(prediction, int | float) and isinstance(label, int | float):
        return Judged(record, None, abs(prediction - label), "distance to the label")
    if "prediction" not in record:
        loss = record.get("loss")
        order = float(loss) if isinstance(loss, int | float) else math.nan
        return Judged(record, None, order, "loss")
    return Judged(record, prediction in _right_answers(label), math.nan, "")


def probability(logits: Sequence[float]) -> float:
    """Return the softmax probability of the largest logit; NaN if a logit is not a number."""
    numbers = [float(x) if isinstance(x, int | float) else math.nan for x in logits]
    if any(math.isnan(x) for x in numbers):
        return math.nan
    # softmax of the largest logit, shifted by it so that exp cannot overflow
    largest = max(numbers)
    return 1 / math.fsum(math.exp(x - largest) for x in numbers)


def _right_answers(label: Any) -> list[Any]:
    """Return all predictions that count as right; [""] for a question without an answer."""
    if isinstance(label, dict) and isinstance(label.get("text"), list):
        return list(label["text"]) or [""]  # SQuAD 2: no answer is predicted as an empty text
    return [label]


def _order(judged: Judged) -> tuple[bool, float]:
    """Return a sort key that puts rows without a number first."""
    known = not math.isnan(judged.order)
    return known, judged.order if known else 0.0


def _examples(judged: Iterable[Judged]) -> tuple[Example, ...]:
    return tuple(_example(one) for one in judged)


def _example(judged: Judged) -> Example:
    record = judged.record
    prediction = _as_text(record["prediction"]) if "prediction" in record else "not written"
    return Example(
        row=record["row"],
        texts=tuple((name, _cut(text)) for name, text in _texts(record)),
        label=_cut(_as_text(record["label"])),
        prediction=_cut(prediction),
        sureness=_sureness(judged),
    )


def _sureness(judged: Judged) -> str:
    if math.isnan(judged.order):
        return ""
    if judged.unit == "probability":
        return f"probability {judged.order:.1%}"
    return f"{judged.unit} {judged.order:.4g}"


def _texts(record: Record) -> list[tuple[str, str]]:
    given = record.get("input")
    if isinstance(given, dict):
        return [(str(name), _as_text(text)) for name, text in given.items()]
    # families with records of their own name the input themselves
    names = ("source", "question", "tokens", "image", "rejected")
    known = (name for name in names if record.get(name))
    return [(name, _as_text(record[name])) for name in known]


def _as_text(value: Any) -> str:
    """Format a value as text: answers separated by bars, tags by spaces."""
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return " ".join("?" if part is None else str(part) for part in value)
    if isinstance(value, dict) and isinstance(value.get("text"), list):
        return " | ".join(dict.fromkeys(map(str, value["text"]))) or "no answer"
    return json.dumps(value, ensure_ascii=False)


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
