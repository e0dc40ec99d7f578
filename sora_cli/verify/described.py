"""Compare subjects beyond their outputs: class names, maximum lengths of rows, tokenizers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from sora_cli.adapter.digest import deciding, differing_facts, result_remarks
from sora_cli.adapter.metadata import read_json, read_sora_file
from sora_cli.model.base import names_agree
from sora_cli.model.files import MODEL_CONFIG, SORA_FILE
from sora_cli.model.references import local_checkpoint
from sora_cli.verify.subjects import Subject


def described_apart(subjects: Sequence[Subject]) -> list[str]:
    """Return a sentence for each fact in which two subjects, or a subject and its report, differ.

    Only facts that change answers count, since the outputs alone do not show them. Exchanged
    weights give the same outputs each time that they are loaded, too; of two subjects the outputs
    of both are compared.
    """
    places = {place: None for subject in subjects if (place := _place(subject)) is not None}
    alone = len(places) == 1
    differences = [
        line
        for place in places
        for line in (*result_remarks(place, weights=alone), *_inconsistent(place))
    ]
    for one, other in combinations(subjects, 2):
        facts = _facts(one), _facts(other)
        if names_agree(*(each.get("labels", ()) for each in facts)):
            facts[1].pop("labels", None)
        differences += differing_facts(*facts, (one.reference, other.reference))
    return differences


def _place(subject: Subject) -> Path | None:
    return subject.folder or local_checkpoint(subject.source, subject.revision)


def _facts(subject: Subject) -> dict[str, Any]:
    """Return the facts that decide answers: of a model's configuration, else of `sora.json`."""
    place = _place(subject)
    return {} if place is None else {**_recorded(place), **_configured(place)}


def class_names(place: Path) -> list[str]:
    """Return the names of a model's classes by its own files; []: they have none."""
    return list({**_recorded(place), **_configured(place)}.get("labels", ()))


def _inconsistent(place: Path) -> Iterator[str]:
    """Yield a sentence for each fact in which a merged model's two files contradict each other."""
    yield from differing_facts(
        _configured(place), _recorded(place), (place / MODEL_CONFIG, place / SORA_FILE)
    )


def _recorded(place: Path) -> dict[str, Any]:
    return deciding(read_sora_file(place / SORA_FILE)[0])


def _configured(place: Path) -> dict[str, Any]:
    """Return these facts from a model's configuration, without labels that transformers made up."""
    file = place / MODEL_CONFIG
    config = read_json(file) if file.is_file() else {}
    names = config.get("id2label") or {}
    labels = [str(names[number]) for number in sorted(names, key=int)]
    made_up = labels == [f"LABEL_{number}" for number in range(len(labels))]
    facts = {"labels": [] if made_up else labels, "problem_type": config.get("problem_type")}
    return {key: value for key, value in facts.items() if value}
