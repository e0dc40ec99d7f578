"""The content of rows, for comparisons: an image counts by its file's bytes, not by its path."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

from datasets import Dataset

# Internals of datasets (5.2), used by push_to_hub: they read the bytes of files undecoded.
from datasets.features.features import require_storage_embed
from datasets.table import embed_table_storage

_FILES = 100  # files in memory at a time
_STORED = {"bytes", "path"}


def comparable_batches(rows: Dataset, batch_size: int) -> Iterator[dict[str, list[Any]]]:
    """Yield batches of rows by column, each stored file replaced by its SHA-256.

    Files are hashed without decoding, which is much faster: 10,000 files of 30 kB take about 4
    seconds.

    Args:
        batch_size: rows of a batch; at most 100 if the rows hold files, to save memory.

    Raises:
        OSError: a file has disappeared.
    """
    if not any(require_storage_embed(feature) for feature in rows.features.values()):
        yield from rows.iter(batch_size=batch_size)
        return
    for table in rows.with_format("arrow").iter(batch_size=min(batch_size, _FILES)):
        columns = embed_table_storage(table).to_pydict()
        yield {name: [_with_digests(value) for value in values] for name, values in columns.items()}


def _with_digests(value: Any) -> Any:
    """Replace every stored file inside a value by its SHA-256."""
    if isinstance(value, list):
        return [_with_digests(inner) for inner in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == _STORED and value["bytes"] is not None:
        return hashlib.sha256(value["bytes"]).hexdigest()
    return {name: _with_digests(inner) for name, inner in value.items()}


def data_fingerprint(rows: Dataset) -> str:
    """Return the SHA-256 of the content of all rows, in order.

    The result does not depend on the number of rows in a batch, which is smaller for columns that
    some versions of `datasets` treat as files.
    """
    names = sorted(rows.column_names)
    digest = hashlib.sha256(json.dumps(names).encode())
    for batch in comparable_batches(rows, 1000):
        values = list(zip(*(batch[name] for name in names), strict=True))
        # the list's brackets are cut off, so that the batches do not change the digest
        digest.update(json.dumps(values, sort_keys=True, default=str)[1:-1].encode() + b", ")
    return digest.hexdigest()
