"""`sora predict -o FILE.npy`: the vectors of texts as one array."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from sora_cli.app import run
from sora_cli.core.exit_codes import OK
from tests.helpers_errors import refusal, refused
from tests.helpers_families import FAMILIES, retrieval_rows
from tests.helpers_runs import train, write_rows
from tests.sora_cli.commands.test_predict import small_parts


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vectors")
    train(FAMILIES["embedding"](folder), "training.max_steps=1", f"output.dir={folder / 'run'}")
    rows = retrieval_rows(12)
    write_rows(folder / "both.jsonl", rows)
    write_rows(folder / "documents.jsonl", [{"positive": row["positive"]} for row in rows])
    return folder


def test_the_array_has_the_rows_of_the_file_in_their_order(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_parts(monkeypatch)
    words = ["predict", str(trained / "run"), str(trained / "documents.jsonl"), "-o"]
    assert run([*words, str(tmp_path / "v.npy")]) == OK
    assert run([*words, str(tmp_path / "v.jsonl")]) == OK
    array = np.load(tmp_path / "v.npy", allow_pickle=False)
    lines = (tmp_path / "v.jsonl").read_text().splitlines()
    listed = np.array([json.loads(line)["document_vector"] for line in lines])
    assert array.dtype == np.float32
    assert array.shape == (12, listed.shape[1])
    np.testing.assert_allclose(array, listed, atol=1e-7)
    np.testing.assert_allclose(np.linalg.norm(array, axis=1), 1, atol=1e-5)


def test_what_is_not_one_vector_a_row_is_refused(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from sora_cli.use.formats import check_vectors

    both = str(trained / "both.jsonl")
    refused(capsys, "predict", trained / "run", both, "-o", tmp_path / "v.npy")
    assert not (tmp_path / "v.npy").exists()
    with refusal():
        check_vectors(["prediction"])
