"""Remarks on a run's data and scores for the user, a line each.

Every remark follows from numbers, and quotes them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from sora_cli.core.words import first_few
from sora_cli.data.overlap import Overlap, find_overlaps
from sora_cli.recipe.metric_facts import facts_of
from sora_cli.run.class_counts import absent_remarks, class_counts
from sora_cli.run.encode import flat_column
from sora_cli.run.prepare import Prepared
from sora_cli.tasks.base import Task
from sora_cli.tasks.encoded import Encoded, Predictions
from sora_cli.tasks.stand_ins import finite_rows

_FEW = 5  # classes named in a remark
_SELECTION = "the selection rows"
_MOST_UNKNOWN = 0.05  # of a part's tokens, special ones left out
_UNLIMITED = 2**31  # tokens: the model has no limit


def overlaps_of(ready: Prepared) -> dict[str, Overlap]:
    """Find the training rows among the rows of every scored part."""
    parts = dict(ready.rows.report)
    if ready.selects_apart:
        parts["select"] = ready.rows.select
    task = ready.task
    return find_overlaps(ready.rows.train, parts, texts=task.input_columns, label=task.label_column)


def data_remarks(ready: Prepared, overlaps: Mapping[str, Overlap]) -> list[str]:
    """Return the remarks on the data that need no training."""
    parts = {"train": ready.train, **ready.report}
    if ready.selects_apart:
        parts["select"] = ready.select
    remarks = [
        label_remark(name, labels, ready.task.label_names)
        for name, part in parts.items()
        if (labels := ready.task.labels(part)) is not None
    ]
    remarks += [base_classes_remark(ready.base.classes, ready.task.label_names, ready.base.missing)]
    remarks += absent_remarks(class_counts(ready))
    processor = ready.base.processor
    tokenizer = getattr(processor, "tokenizer", processor)  # processors of images have one
    remarks.append(unknown_remark(parts, tokenizer))
    limit = getattr(tokenizer, "model_max_length", _UNLIMITED)
    remarks.append(cut_remark(parts, ready.task.data.max_length, limit=limit))
    remarks += ready.task.remarks({_part_name(name): part for name, part in parts.items()})
    rows = {"train": ready.rows.train, "select": ready.rows.select, **ready.rows.report}
    remarks += counted_remarks(parts, {name: len(part) for name, part in rows.items()})
    remarks += ready.rows.notes
    remarks += [overlap_remark(n, o, len(rows[n])) for n, o in overlaps.items()]
    return [remark for remark in remarks if remark is not None]


def counted_remarks(parts: Mapping[str, Encoded], rows: Mapping[str, int]) -> Iterator[str]:
    """Yield remarks on the rows that a task counted while it encoded them.

    Args:
        rows: number of raw rows that were encoded, of each part.
    """
    for name, part in parts.items():
        for what, number in {**part.lacking, **part.notes}.items():
            if number:
                yield f"{number:,} of {rows[name]:,} rows of {_part_name(name)} {what}"


def label_remark(part: str, labels: np.ndarray, names: Sequence[str] | None) -> str | None:
    """Remark on labels (rows,) that are all the same.

    Args:
        part: "train" or a scored part.
        names: of the classes; None if labels are numbers.
    """
    if np.unique(labels).size > 1:
        return None
    label = _label_text(labels[0], names)
    if part == "train":
        return f"every training row is {label}: there is nothing to learn"
    return f"every row of {_part_name(part)} is {label}: its scores mean little"


def base_classes_remark(
    own: Sequence[str] | None, names: Sequence[str] | None, missing: Sequence[str]
) -> str | None:
    """Remark on a base model whose head was trained for other classes or for another class order.

    Args:
        own: classes in the base model's configuration.
        names: classes of the data.
        missing: parameters that the base model lacks; if any, its head is new and has no classes.
    """
    if not own or not names or missing or list(own) == list(names):
        return None
    return (
        f"the base model's head was trained for {first_few(own, _FEW)}; it starts with these in "
        f"place of the data's {first_few(names, _FEW)}"
    )


def cut_remark(parts: Mapping[str, Encoded], max_length: int, *, limit: int) -> str | None:
    """Remark on rows that were cut.

    Args:
        limit: longest input of the tokenizer's model, in tokens.
    """
    cut = {name: part for name, part in parts.items() if part.truncated}
    if not cut:
        return None
    counts = [f"{p.truncated:,} of {len(p.lengths):,} of {_part_name(n)}" for n, p in cut.items()]
    longest = max(part.longest for part in cut.values())
    text = f"rows cut at {max_length} tokens: {', '.join(counts)}; the longest has {longest:,}"
    if max_length >= limit:
        return f"{text}, more than the model takes"
    return f"{text}: data.max_length={min(longest, limit)}"


def unknown_remark(parts: Mapping[str, Encoded], tokenizer: Any) -> str | None:
    """Remark on texts that the tokenizer hardly knows: all unknown tokens are one to the model."""
    unknown = getattr(tokenizer, "unk_token_id", None)
    others = [tokenizer.bos_token_id, tokenizer.eos_token_id] if unknown is not None else []
    if unknown is None or unknown in others:  # GPT-2's is its end of text: it knows every byte
        return None
    special = [token for token in tokenizer.all_special_ids if token != unknown]
    shares = {}
    for name, part in parts.items():
        if "input_ids" in part.dataset.column_names:
            tokens = flat_column(part.dataset, "input_ids")
            read = tokens[~np.isin(tokens, special)]
            shares[name] = float((read == unknown).mean()) if len(read) else 0.0
    known_to_few = {name: share for name, share in shares.items() if share > _MOST_UNKNOWN}
    if not known_to_few:
        return None
    each = ", ".join(f"{share:.0%} of {_part_name(name)}" for name, share in known_to_few.items())
    return (
        f"unknown to the base model's tokenizer ({tokenizer.unk_token}): {each}; the model reads "
        "these tokens as one and the same: take a base model of the texts' language"
    )


def overlap_remark(part: str, overlap: Overlap, rows: int) -> str | None:
    """Remark on rows of a part that are also training rows."""
    if not overlap.rows:
        return None
    text = f"{overlap.rows:,} of {rows:,} rows of {_part_name(part)} are training rows, too"
    if overlap.rows == rows:
        text = f"all {rows:,} rows of {_part_name(part)} are training rows, too"
    if overlap.contradicted:
        text += f", {overlap.contradicted:,} of them with another label there"
    return text if overlap.rows < rows else f"{text}: its scores say nothing of other rows"


def prediction_remark(task: Task, split: str, predictions: Predictions) -> str | None:
    """Remark on predictions that are all the same, or no better than a constant."""
    outputs, labels = predictions.outputs, predictions.labels
    finite = finite_rows(outputs)
    if not finite.all():
        return f"{(~finite).sum():,} of {len(finite):,} predictions on {split} are not finite"
    answers = task.answers(predictions)
    if labels is None or answers is None or np.unique(labels).size == 1:
        return None  # nothing to compare, or one label only (`label_remark`)
    if task.label_names is None:
        return _of_numbers(split, answers, labels)
    return _of_classes(split, answers, labels, task.label_names)


def _of_classes(
    split: str, answers: np.ndarray, labels: np.ndarray, names: Sequence[str]
) -> str | None:
    if np.unique(answers).size == 1:
        share = np.mean(labels == answers[0])
        name = _label_text(answers[0], names)
        return (
            f"every prediction on {split} is {name} (accuracy {share:.4f} is the share of {name})"
        )
    classes, counts = np.unique(labels, return_counts=True)
    share, accuracy = counts.max() / len(labels), np.mean(answers == labels)
    if accuracy > share:
        return None
    most = _label_text(classes[counts.argmax()], names)
    return (
        f"accuracy {accuracy:.4f} on {split} is no better than always predicting {most}: "
        f"{share:.4f}"
    )


def _of_numbers(split: str, answers: np.ndarray, labels: np.ndarray) -> str | None:
    answers, labels = answers.astype(np.float64), labels.astype(np.float64)
    if np.ptp(answers) == 0:
        return f"every prediction on {split} is {answers[0]:.4g}"
    # R^2 = 1 - mean squared error / variance: 0 for always answering the mean
    explained = 1 - np.mean((answers - labels) ** 2) / np.var(labels)
    if explained > 0:
        return None
    mean = np.mean(labels)
    return (
        f"predictions on {split} are no better than the labels' mean, {mean:.4g}: "
        f"R^2 {explained:.3f}"
    )


def adapters_remark(
    metric: str, split: str, *, score: float, without: float, rows: int, greater_is_better: bool
) -> str | None:
    """Remark on adapters that do not improve the score.

    An improvement must be larger than one row can make; of a loss, larger than 0.

    Args:
        score: of the trained model; `without`: with its adapters switched off.
        rows: number of scored rows.
    """
    gain = score - without if greater_is_better else without - score
    # one row more is worth 1 / rows of a share such as accuracy; a loss has no smallest step
    least = 0.0 if facts_of(metric).smaller_is_better else 1 / rows + 1e-9
    if not math.isfinite(without) or gain > least:
        return None
    nothing = gain >= -least  # NaN counts as worse
    what = "add nothing to the rest of the model" if nothing else "make the model worse"
    return (
        f"the adapters {what}: {metric} on {split} is {score:.4f} with them, {without:.4f} without"
    )


def skip_remark(steps: Sequence[int], total: int) -> str | None:
    """Remark on steps that were skipped; steps count from 1."""
    if not steps:
        return None
    return (
        f"{len(steps)} of {total} steps were left out because their loss or gradient was not "
        f"finite: {first_few(steps, 10)}"
    )


def _part_name(part: str) -> str:
    return _SELECTION if part == "select" else part


def _label_text(label: np.ndarray, names: Sequence[str] | None) -> str:
    return f"{float(label):g}" if names is None else f"'{names[int(label)]}'"
