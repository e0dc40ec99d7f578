"""Rows with images are compared by what their files hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, Image

from sora_cli.data import content
from sora_cli.data.content import data_fingerprint
from sora_cli.data.overlap import Overlap, find_overlaps
from sora_cli.data.rows import load_rows
from sora_cli.recipe.recipe import DataBlock
from tests.helpers_images import encoded, write_image_folder


def test_content_is_told_from_files_and_their_names_do_not_count(tmp_path: Path) -> None:
    one = write_image_folder(tmp_path / "one", splits=("train", "validation"))
    first = load_rows(DataBlock(path=str(one)))
    digest = data_fingerprint(first.train)
    assert digest == data_fingerprint(load_rows(DataBlock(path=str(one))).train)
    assert digest != data_fingerprint(first.report["validation"])
    stored = first.train.cast_column("image", Image(decode=False))
    held = Dataset.from_list(
        [
            {**row, "image": {"bytes": Path(row["image"]["path"]).read_bytes(), "path": "x.png"}}
            for row in stored
        ],
        features=first.train.features,
    )
    columns = {"texts": ["image"], "label": "label"}
    other = first.train.select([3, 0, 5])
    other = other.map(lambda row: {"label": (row["label"] + 1) % 4})
    splits = {"same": held.select([1, 2]), "other": other, "new": first.report["validation"]}
    assert find_overlaps(first.train, splits, **columns) == {
        "same": Overlap(2, 0),
        "other": Overlap(3, 3),
        "new": Overlap(0, 0),
    }
    changed = one / "train" / "north-east" / "1.png"
    changed.write_bytes(encoded(np.zeros((8, 8), dtype=np.uint8)))
    assert digest != data_fingerprint(load_rows(DataBlock(path=str(one))).train)


@pytest.mark.versions
def test_the_digest_does_not_depend_on_how_rows_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """As datasets 3.0 has it, any list may hold files; then fewer rows are read at a time."""
    rows = Dataset.from_list([{"tokens": [f"word {i}"], "tags": [i % 7]} for i in range(250)])
    digest = data_fingerprint(rows)
    assert digest.startswith("c069d9ac17fbc648")  # in certificates: with every version the same
    monkeypatch.setattr(content, "require_storage_embed", lambda _: True)
    assert data_fingerprint(rows) == digest
    assert data_fingerprint(rows.select(range(249))) != digest
