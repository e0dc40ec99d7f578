"""Words and their tags in raw rows, and the tokens that stand for them.

A row's words are read as one text with spaces between them, so that every kind of tokenizer cuts
them as it cuts running text; the places of tokens in the text tell which word each belongs to. (The
libraries' `is_split_into_words` gives the same tokens with WordPiece, and with others only under
certain settings.)
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset

from sora_cli.core.words import shown_value
from sora_cli.data.places import RowError
from sora_cli.recipe.recipe import DataBlock
from sora_cli.tasks.labels import Labels, encode_classes, find_class_names
from sora_cli.tasks.language import IGNORED
from sora_cli.tasks.texts import require_offsets, row_error

_KEY = "data.columns.tags"


def tag_labels(rows: Dataset, column: str) -> Labels:
    """Return the tags of all words, in order.

    Raises:
        RowError: tags that are no lists.
    """
    lists = _lists(rows, column, "tags")
    values = [tag for tags in lists for tag in tags]
    owners = np.repeat(np.arange(len(lists)), [len(tags) for tags in lists]).tolist()
    return Labels(column, values, _item_feature(rows.features[column]), owners)


def find_tag_names(tags: Labels, data: DataBlock) -> list[str]:
    """Return the tags' names in label order: the data set's, the recipe's, or the tags themselves.

    Raises:
        SoraError: tags that are no classes, or names that do not fit them.
    """
    try:
        return find_class_names(tags, data)
    except RowError as error:
        error.hint = "tags are names, or numbers named by data.label_names"
        raise


def read_words(rows: Dataset, column: str) -> list[list[str]]:
    """Return the words of each row.

    Raises:
        SoraError: a row without words, or with something else; it says which.
    """
    words = _lists(rows, column, "tokens")
    for row, listed in enumerate(words):
        others = [word for word in listed if not isinstance(word, str)]
        if not listed or others:
            holds = f"holds {shown_value(others[0])}" if others else "has no words"
            raise row_error(f"column '{column}' {holds}", row, key="data.columns.tokens")
    return words


def read_tags(
    rows: Dataset, column: str, words: Sequence[Sequence[str]], names: Sequence[str]
) -> list[list[int]]:
    """Return the numbers of the tags of each row's words.

    Raises:
        SoraError: a tag that is none of these, or a row with more or fewer tags than words.
    """
    tags = _lists(rows, column, "tags")
    for row, (listed, own) in enumerate(zip(tags, words, strict=True)):
        if len(listed) != len(own):
            raise row_error(f"{len(listed)} tags for {len(own)} words", row, key=_KEY)
    flat = tag_labels(rows, column)
    numbers = encode_classes(flat.values, names, column=column, rows=flat.rows)
    ends = np.cumsum([len(listed) for listed in tags])
    return [numbers[end - len(listed) : end] for listed, end in zip(tags, ends, strict=True)]


def align(
    words: Sequence[Sequence[str]],
    tags: Sequence[Sequence[int]],
    tokenizer: Any,
    *,
    max_length: int,
    inside: Sequence[int] | None,
) -> Dataset:
    """Return one row for each: the model's inputs, and `labels`, a word's tag where it begins.

    Also `places`, the number of the word whose first token it is, for each token; IGNORED where a
    token is not a word's first one, and `tokens`, the row's tokens before it was cut.

    Args:
        max_length: tokens at which rows are cut.
        inside: for each tag, that of a word's other tokens; None: they have none.

    Raises:
        SoraError: a tokenizer that does not tell places.
    """
    require_offsets(tokenizer)

    def encode_batch(batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        texts = [" ".join(listed) for listed in batch["words"]]
        whole = tokenizer(texts, verbose=False)["input_ids"]
        options = {"truncation": True, "max_length": max_length, "return_offsets_mapping": True}
        out = tokenizer(texts, return_special_tokens_mask=True, **options)
        owners = [
            _owners(listed, offsets, special)
            for listed, offsets, special in zip(
                batch["words"], out["offset_mapping"], out["special_tokens_mask"], strict=True
            )
        ]
        columns = {name: out[name] for name in tokenizer.model_input_names if name in out}
        labelled = [
            _labels(own, listed, inside) for own, listed in zip(owners, batch["tags"], strict=True)
        ]
        return {
            **columns,
            "labels": labelled,
            "places": [_firsts(own) for own in owners],
            "tokens": [len(ids) for ids in whole],
        }

    rows = Dataset.from_dict({"words": list(words), "tags": list(tags)})
    return rows.map(
        encode_batch,
        batched=True,
        remove_columns=["words", "tags"],
        new_fingerprint=secrets.token_hex(8),  # to compute one takes time
        load_from_cache_file=False,
        desc="tokenising",
    )


def tags_inside(names: Sequence[str]) -> list[int]:
    """Return for each tag that of the rest of a word: I-X for B-X if there is one, else itself."""
    index = {name: number for number, name in enumerate(names)}
    return [
        index.get(f"I-{name[2:]}", number) if name.startswith("B-") else number
        for name, number in index.items()
    ]


def _owners(
    words: Sequence[str], offsets: Sequence[tuple[int, int]], special: Sequence[int]
) -> np.ndarray:
    """Return the number of the word that each token belongs to, (tokens,); IGNORED: to none."""
    ends = np.cumsum([len(word) + 1 for word in words])  # the space is counted to the word before
    starts = np.array([start for start, _ in offsets])
    stops = np.array([end for _, end in offsets])
    # A token's last character tells its word: some tokenizers count the space before to a token.
    owners = np.searchsorted(ends, stops - 1, side="right")
    owners[(stops <= starts) | np.asarray(special, dtype=bool) | (owners >= len(words))] = IGNORED
    return owners


def _firsts(owners: np.ndarray) -> list[int]:
    """Return the number of a word where it begins, else IGNORED."""
    before = np.concatenate([[IGNORED], owners[:-1]])
    return [int(place) for place in np.where(owners != before, owners, IGNORED)]


def _labels(owners: np.ndarray, tags: Sequence[int], inside: Sequence[int] | None) -> list[int]:
    firsts = _firsts(owners)
    if inside is None:
        return [IGNORED if first == IGNORED else tags[first] for first in firsts]
    return [
        IGNORED if own == IGNORED else tags[own] if own == first else inside[tags[own]]
        for own, first in zip(owners, firsts, strict=True)
    ]


def _item_feature(feature: Any) -> Any:
    """Return the feature of the items in a column of lists."""
    return feature[0] if isinstance(feature, list) else getattr(feature, "feature", feature)


def _lists(rows: Dataset, column: str, part: str) -> list[list[Any]]:
    lists: list[list[Any]] = rows[column][:]
    for row, value in enumerate(lists):
        if not isinstance(value, list):
            what = f"column '{column}' holds {shown_value(value)}, which is no list"
            raise row_error(what, row, key=f"data.columns.{part}")
    return lists
