"""A Hub that does not answer: it is asked once, and copies on the disk are used without it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest

from sora_cli.core.errors import SoraError
from sora_cli.data.rows import load_rows
from sora_cli.model.loading import loading
from sora_cli.recipe.recipe import DataBlock
from tests.helpers_errors import refusal


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """What the Hub was asked for, and what the libraries then did."""

    def refuse(url: str) -> None:
        asked.append(url)
        raise RuntimeError("Name or service not known")

    def load(*_: Any, **__: Any) -> None:
        asked.append("load_dataset")
        raise ConnectionError("tried for half a minute")

    asked: list[str] = []
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", refuse)
    monkeypatch.setattr(datasets, "load_dataset", load)
    return asked


def _load_model(asked: list[str]) -> None:
    with loading("nobody/nothing"):
        asked.append("from_pretrained")
        raise OSError("tried for half a minute")


def _load_data(_: list[str]) -> None:
    load_rows(DataBlock(path="nobody/nothing"))


@pytest.mark.parametrize(
    ("load", "url"),
    [(_load_model, "/nobody/nothing/resolve/main/config.json"),
     (_load_data, "/datasets/nobody/nothing/resolve/main/README.md")],
)  # fmt: skip
def test_it_is_asked_once(asked: list[str], load: Any, url: str) -> None:
    with refusal():
        load(asked)
    assert len(asked) == 1
    assert asked[0].endswith(url)


@pytest.mark.parametrize(
    ("load", "folder", "step"),
    [(_load_model, "models--nobody--nothing", "from_pretrained"),
     (_load_data, "datasets--nobody--nothing", "load_dataset")],
)  # fmt: skip
def test_it_is_not_asked_where_copies_are(
    asked: list[str], tmp_path: Path, load: Any, folder: str, step: str
) -> None:
    (tmp_path / folder).mkdir()
    with pytest.raises(SoraError, match="neither a local directory nor available"):
        load(asked)
    assert asked == [step]
