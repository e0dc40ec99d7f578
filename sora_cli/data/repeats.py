"""Rows with the same input: their groups, and the division of rows into parts that share no input.

Each row has one or more keys, such as a hash of its input (`overlap.input_hashes`). Two rows are
the same input if they agree in any key, as two pairs of image and text with the same image. A key
may have several values, such as a query's documents: rows agree in it if they share a value.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
from datasets import Dataset

Keys = Sequence[np.ndarray]
"""Keys of rows, (rows,) or (rows, values) each."""
KeysOf = Callable[[Dataset], Keys]
"""Returns the keys of raw rows."""
_SLICE = 50_000  # rows that are hashed at a time
_PLACES = 2**62  # the number of the first place in a list, as it is hashed
_ODD = np.uint64(0x9E3779B97F4A7C15)


def groups_of(keys: Keys) -> np.ndarray:
    """Return the number of each row's group, (rows,); rows of one group have the same input.

    Groups are numbered by their first rows, so that without repeats each row has its own number.
    """
    labels = keys[0]
    if len(keys) > 1 or labels.ndim > 1:
        labels = _connected([np.unique(key, return_inverse=True)[1] for key in map(_wide, keys)])
    _, first, group = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[group]


def count_inputs(keys: Keys) -> int:
    """Return the number of different inputs among rows."""
    return int(groups_of(keys).max()) + 1


def _wide(key: np.ndarray) -> np.ndarray:
    """Return a key as (rows, values)."""
    return key.reshape(len(key), -1)


def _connected(keys: Sequence[np.ndarray]) -> np.ndarray:
    """Return a label for all rows that are linked by equal keys, directly or by other rows.

    Args:
        keys: (rows, values) each, numbers from 0.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    rows = len(keys[0])
    values, total = [], rows
    for key in keys:  # a graph of rows and of the values of their keys
        values.append(key.T.flatten() + total)
        total += int(key.max()) + 1
    width = sum(key.shape[1] for key in keys)
    ends = np.tile(np.arange(rows), width), np.concatenate(values)
    graph = coo_array((np.ones(len(ends[0]), dtype=bool), ends), shape=(total, total))
    return np.asarray(connected_components(graph, directed=False)[1][:rows])


def rows_in(groups: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Return the numbers of all rows of some groups, in the order of these groups.

    Args:
        chosen: numbers of groups.
    """
    place = np.full(int(groups.max()) + 1, -1)
    place[chosen] = np.arange(len(chosen))
    rows = np.flatnonzero(place[groups] >= 0)
    return rows[np.argsort(place[groups[rows]], kind="stable")]


def share_of(groups: int, rows: int, total: int) -> int:
    """Return how many of some groups have about `rows` of `total` rows; both parts get some.

    Groups are counted, whatever their sizes: a draw that looked at sizes would prefer some inputs.
    """
    return min(max(round(groups * rows / total), 1), groups - 1)


def first_of_each(
    keys: Keys, seen: Sequence[Keys], seed: int, known: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows that repeat no other row, one of each group, and the rows that are seen.

    Args:
        keys: of the rows.
        seen: keys of other rows, from the same functions in the same order.
        seed: of the order in which rows are taken.
        known: a mask (rows,) of rows that are seen, too.

    Returns:
        The numbers of the rows that are taken, sorted; and a mask (rows,) of the rows that have
        the same input as one of the other rows.
    """
    known = np.zeros(len(keys[0]), dtype=bool) if known is None else known.copy()
    for place, key in enumerate(keys):
        for other in seen:
            known |= np.isin(_wide(key), other[place]).any(axis=1)
    order = np.random.default_rng(seed).permutation(len(known))
    order = order[~known[order]]
    if len(keys) == 1 and keys[0].ndim == 1:
        return np.sort(order[np.unique(keys[0][order], return_index=True)[1]]), known
    taken, used = [], [set[int]() for _ in keys]
    for row in order.tolist():
        own = [set(key[row].tolist()) for key in map(_wide, keys)]
        if not any(values & others for values, others in zip(own, used, strict=True)):
            taken.append(row)
            for values, others in zip(own, used, strict=True):
                others |= values
    return np.sort(np.array(taken, dtype=np.int64)), known


def list_hashes(rows: Dataset, column: str) -> np.ndarray:
    """Return a hash of each list in a column, (rows,) uint64; of integers, or of lists of them."""
    if not len(rows):
        return np.zeros(0, dtype=np.uint64)
    tables = rows.select_columns([column]).with_format("arrow").iter(batch_size=_SLICE)
    return np.concatenate([hashes_of(table.column(column).combine_chunks()) for table in tables])


def hashes_of(lists: pa.ListArray) -> np.ndarray:
    """Return a hash of each list, (lists,) uint64."""
    values = lists.flatten()
    inner = (
        hashes_of(values)
        if pa.types.is_list(values.type) or pa.types.is_large_list(values.type)
        else _mixed(values.to_numpy(zero_copy_only=False).astype(np.int64).view(np.uint64))
    )
    lengths = lists.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
    ends = np.cumsum(lengths)
    # far from all values: a value 0 at place 1 must not count as a value 1 at place 0
    places = np.arange(len(inner)) - np.repeat(ends - lengths, lengths) + _PLACES
    # each term depends on the value and on its place; sums wrap, so their differences are exact
    sums = np.zeros(len(inner) + 1, dtype=np.uint64)
    np.cumsum(_mixed(inner ^ _mixed(places.view(np.uint64))), out=sums[1:])
    return _mixed((sums[ends] - sums[ends - lengths]) ^ _mixed(lengths.view(np.uint64)))


def _mixed(values: np.ndarray) -> np.ndarray:
    """Return numbers with their bits mixed, one to one (splitmix64, Steele et al. 2014)."""
    mixed = values + _ODD
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
