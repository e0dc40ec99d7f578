"""Words and tags of raw rows, and their alignment with tokens.

A row's words are joined by spaces and read as one text, so that every kind of tokenizer splits them
like running text. The places of tokens in that text tell each token's word. (The libraries'
`is_split_into_words` gives the same tokens with WordPiece, but with other tokenizers only under
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
    """Return the tags of all words, in order."""
    lists = _lists(rows, column, "tags")
    values = [tag for tags in lists for tag in tags]
    owners = np.repeat(np.arange(len(lists)), [len(tags) for tags in lists]).tolist()
    return Labels(column, values, _item_feature(rows.features[column]), owners)


def find_tag_names(tags: Labels, data: DataBlock) -> list[str]:
    """Return the tag names in label order: from the data set, the recipe, or the tags."""
    try:
        return find_class_names(tags, data)
    except RowError as error:
        error.hint = "tags are names, or numbers named by data.label_names"
        raise


def read_words(rows: Dataset, column: str) -> list[list[str]]:
    """Return the words of each row; a row without words is an error."""
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
    """Return the tag numbers of each row's words; there must be one tag per word."""
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
    """Return the model's inputs, one row per text, with each word's tag at its first token.

    The tags are in `labels`. Further columns are `places`, for each token the number of the word
    that begins with it (IGNORED for all other tokens), and `tokens`, the row's number of tokens
    before the cut.

    Args:
        max_length: tokens that are kept of each row.
        inside: for each tag, the tag of a word's further tokens; None: they have no label.
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
        new_fingerprint=secrets.token_hex(8),  # random: computing one is slow
        load_from_cache_file=False,
        desc="tokenising",
    )


def tags_inside(names: Sequence[str]) -> list[int]:
    """Return for each tag the tag of a word's further tokens: I-X for B-X if it exists.

    All other tags stay the same.
    """
    index = {name: number for number, name in enumerate(names)}
    return [
        index.get(f"I-{name[2:]}", number) if name.startswith("B-") else number
        for name, number in index.items()
    ]


def _owners(
    words: Sequence[str], offsets: Sequence[tuple[int, int]], special: Sequence[int]
) -> np.ndarray:
    """Return the number of each token's word, (tokens,); IGNORED for tokens of no word."""
    ends = np.cumsum([len(word) + 1 for word in words])  # each space belongs to the word before it
    starts = np.array([start for start, _ in offsets])
    stops = np.array([end for _, end in offsets])
    # by each token's last character: some tokenizers include the space before a word in its token
    owners = np.searchsorted(ends, stops - 1, side="right")
    owners[(stops <= starts) | np.asarray(special, dtype=bool) | (owners >= len(words))] = IGNORED
    return owners


def _firsts(owners: np.ndarray) -> list[int]:
    """Return the number of the word at each word's first token, IGNORED at all other tokens."""
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
