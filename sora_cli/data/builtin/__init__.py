"""Data sets and small base models that the program makes itself: a first run needs no download."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import DatasetDict


def _entailment() -> DatasetDict:
    from datasets import ClassLabel, Value

    from sora_cli.data.builtin.entailment import LABEL_NAMES, load_entailment

    text, label = Value("string"), ClassLabel(names=list(LABEL_NAMES))
    return _rows(load_entailment(), sentence1=text, sentence2=text, label=label, phenomenon=text)


def _rows(splits: Mapping[str, list[dict[str, object]]], **features: Any) -> DatasetDict:
    """Return a data set of these rows; types that are not given are inferred from the values."""
    from datasets import Dataset, DatasetDict, Features

    types = Features(features) if features else None
    return DatasetDict({name: Dataset.from_list(rows, types) for name, rows in splits.items()})


def _entities() -> DatasetDict:
    from datasets import ClassLabel, Sequence, Value

    from sora_cli.data.builtin.entities import TAGS, load_entities

    tag = ClassLabel(names=list(TAGS))
    return _rows(load_entities(), tokens=Sequence(Value("string")), tags=Sequence(tag))


def _passages() -> DatasetDict:
    from sora_cli.data.builtin.passages import load_passages

    return _rows(load_passages())


def _rankings() -> DatasetDict:
    from sora_cli.data.builtin.rankings import load_rankings

    return _rows(load_rankings())


def _numbers() -> DatasetDict:
    from sora_cli.data.builtin.numbers import load_numbers

    return _rows(load_numbers())


def _endings() -> DatasetDict:
    from sora_cli.data.builtin.endings import load_endings

    return _rows(load_endings())


def _preferences() -> DatasetDict:
    from sora_cli.data.builtin.preferences import load_preferences

    return _rows(load_preferences())


def _thumbs() -> DatasetDict:
    """Each answer of `preferences` by itself, in the order of the pairs."""
    from sora_cli.data.builtin.preferences import load_preferences

    return _rows(
        {
            split: [
                {"prompt": pair["prompt"], "completion": pair[side], "label": side == "chosen"}
                for pair in pairs
                for side in ("chosen", "rejected")
            ]
            for split, pairs in load_preferences().items()
        }
    )


def _digits() -> DatasetDict:
    from datasets import ClassLabel, Image

    from sora_cli.data.builtin.digits import DIGIT_NAMES, load_digit_images

    return _rows(load_digit_images(), image=Image(), label=ClassLabel(names=list(DIGIT_NAMES)))


def _captions() -> DatasetDict:
    from datasets import Image, Value

    from sora_cli.data.builtin.captions import load_captions

    return _rows(load_captions(), image=Image(), text=Value("string"))


BUILTINS: dict[str, Callable[[], DatasetDict]] = {
    "entailment": _entailment,
    "entities": _entities,
    "passages": _passages,
    "rankings": _rankings,
    "numbers": _numbers,
    "endings": _endings,
    "preferences": _preferences,
    "thumbs": _thumbs,
    "digits": _digits,
    "captions": _captions,
}
"""NAME in `data.path: builtin://NAME` -> its loader."""
