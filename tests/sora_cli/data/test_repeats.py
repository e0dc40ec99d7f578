"""Rows with the same input: their groups, the parts that they are dealt to, and hashes of lists."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from sora_cli.data.overlap import input_hashes
from sora_cli.data.repeats import first_of_each, groups_of, list_hashes, rows_in, share_of
from sora_cli.data.rows import Rows, load_rows
from sora_cli.recipe.recipe import DataBlock
from tests.helpers_errors import refusal
from tests.helpers_runs import pair_rows, write_rows

COLUMNS = ["sentence1", "sentence2"]


def keys_of(rows: Dataset) -> list[np.ndarray]:
    return [input_hashes(rows, COLUMNS)]


def texts(rows: Dataset) -> list[str]:
    return [f"{row['sentence1']} | {row['sentence2']}" for row in rows]


def load(path: Path, rows: list[dict[str, Any]], **block: Any) -> Rows:
    files = {"train": write_rows(path / "rows.jsonl", rows)}
    if "held_out_rows" not in block:
        files["validation"] = write_rows(path / "validation.jsonl", pair_rows(30, seed=1))
    return load_rows(DataBlock(files=files, **block), keys_of)


DEALS: list[dict[str, Any]] = [
    {"held_out_rows": 13},
    {"held_out_rows": 13, "selection": "train-rows", "selection_rows": 17},
    {"selection": "train-rows", "selection_rows": 20, "selection_seed": 3},
    {"selection": "half-validation"},
]


@pytest.mark.parametrize("deal", DEALS)
def test_without_repeats_every_row_falls_where_it_fell(tmp_path: Path, deal: Any) -> None:
    rows = pair_rows(80)
    assert len({row["sentence1"] + row["sentence2"] for row in rows}) == 80
    now = load(tmp_path, rows, **deal)
    before = load(tmp_path, rows, **deal, repeats="separate")
    assert texts(now.train) == texts(before.train)
    assert texts(now.select) == texts(before.select)
    assert texts(now.report["validation"]) == texts(before.report["validation"])
    assert now.origin(now.train).place(3) == before.origin(before.train).place(3)


@pytest.mark.parametrize("deal", DEALS[:3])
def test_repeats_go_to_one_part(tmp_path: Path, deal: Any) -> None:
    rows = [row for i, row in enumerate(pair_rows(60)) for _ in range(1 + i % 5)]
    now = load(tmp_path, rows, **deal)
    parts = [now.train, now.select]
    if "held_out_rows" in deal:
        parts = [now.train, now.report["validation"], *([now.select] if len(deal) > 1 else [])]
    known = [set(texts(part)) for part in parts]
    assert sum(map(len, known)) == len(set().union(*known)) == 60
    assert sum(len(part) for part in parts) == len(rows)
    before = load(tmp_path, rows, **deal, repeats="separate")
    assert set(texts(before.train)) & set(texts(before.select))
    # an error names the line of the file, whichever way a row was dealt
    line = int(now.origin(now.train).place(0).split(":")[-1].split(",")[0])
    assert texts(Dataset.from_list(rows))[line - 1] == texts(now.train)[0]


def test_rows_of_a_single_input_cannot_be_held_out(tmp_path: Path) -> None:
    with refusal():
        load(tmp_path, pair_rows(1) * 6, held_out_rows=2)


def test_groups_are_drawn_without_regard_to_their_size() -> None:
    """Each of 4 large and 36 small groups is drawn as often."""
    groups = np.array([i for i in range(40) for _ in range(20 if i < 4 else 1)])
    drawn = np.zeros(40)
    for seed in range(1000):
        order = np.random.default_rng(seed).permutation(40)
        first = share_of(40, 29, len(groups))
        chosen = rows_in(groups, order[:first])
        drawn[np.unique(groups[chosen])] += 1
    assert first == 10
    assert abs(drawn[:4].mean() - 250) < 3 * np.sqrt(250 * 0.75 / 4)


def test_groups_are_numbered_by_their_first_rows() -> None:
    assert groups_of([np.array([7, 3, 7, 9, 3])]).tolist() == [0, 1, 0, 2, 1]
    # an image with two texts, and a text with two images: all four rows hang together
    image, text = np.array([1, 1, 2, 3, 4]), np.array([5, 6, 6, 7, 8])
    assert groups_of([image, text]).tolist() == [0, 0, 0, 1, 2]


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=30),
       st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=5),
       st.integers(0, 99))  # fmt: skip
def test_no_two_rows_that_test_have_a_key_in_common(
    rows: list[tuple[int, int]], seen: list[tuple[int, int]], seed: int
) -> None:
    def keys(pairs: Sequence[tuple[int, int]], number: int) -> list[np.ndarray]:
        return [np.array([pair[i] for pair in pairs], dtype=np.int64) for i in range(number)]

    for number in (1, 2):
        own, other = keys(rows, number), keys(seen, number)
        taken, known = first_of_each(own, [other], seed)
        assert taken.tolist() == sorted(taken.tolist())
        for key, before in zip(own, other, strict=True):
            assert len(set(key[taken].tolist())) == len(taken)
            assert not set(key[taken].tolist()) & set(before.tolist())
        for row in set(range(len(rows))) - set(taken.tolist()):  # nothing is left out for nothing
            used = [set(key[taken].tolist()) | set(b.tolist()) for key, b in zip(own, other)]  # noqa: B905
            assert any(key[row] in values for key, values in zip(own, used, strict=True))
        assert known.tolist() == [
            any(key[i] in b.tolist() for key, b in zip(own, other, strict=True))
            for i in range(len(rows))
        ]


LISTS = st.lists(st.lists(st.integers(-1, 3), max_size=5), min_size=1, max_size=20)


@settings(deadline=None)
@given(LISTS)
def test_lists_are_equal_if_their_hashes_are(lists: list[list[int]]) -> None:
    hashes = list_hashes(Dataset.from_dict({"a": [*lists, [9]]}), "a")
    assert len(set(hashes.tolist())) == len({tuple(one) for one in [*lists, [9]]})


@settings(deadline=None)
@given(st.lists(LISTS, min_size=1, max_size=10))
def test_lists_of_lists_are_equal_if_their_hashes_are(lists: list[list[list[int]]]) -> None:
    rows = [*lists, [[9]]]
    hashes = list_hashes(Dataset.from_dict({"a": rows}), "a")
    assert len(set(hashes.tolist())) == len({str(one) for one in rows})


def test_values_are_not_taken_for_places() -> None:
    rows = [[0, 0], [1, 1], [0, 1], [1, 0], [2, 1, 0], [0, 1, 2], [1, 2, 0], [2, 2, 2], [1, 1, 1]]
    assert len(set(list_hashes(Dataset.from_dict({"a": rows}), "a").tolist())) == len(rows)
    nested = [[row, row] for row in rows] + [[row] for row in rows]
    assert len(set(list_hashes(Dataset.from_dict({"a": nested}), "a").tolist())) == len(nested)


def test_a_hash_does_not_depend_on_the_rows_around() -> None:
    rows = [list(range(i % 31)) for i in range(60_000)]
    whole = list_hashes(Dataset.from_dict({"a": rows}), "a")
    assert len(set(whole.tolist())) == 31
    some = Dataset.from_dict({"a": rows}).select(range(31, 62))
    assert list_hashes(some, "a").tolist() == whole[31:62].tolist()
