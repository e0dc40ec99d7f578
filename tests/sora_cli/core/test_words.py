"""Lists cut short, and hints from the names beside a missing file."""

from __future__ import annotations

from pathlib import Path

import pytest

from sora_cli.core.words import first_few, near_files


def test_the_first_few_names() -> None:
    assert first_few([]) == ""
    assert first_few([1, 2, 3]) == "1, 2, 3"
    assert first_few("abcde", 2) == "a, b and 3 more"


def test_names_beside_a_missing_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert near_files(Path("x.csv")) is None
    assert near_files(Path("no/x.csv")) == "there is no directory 'no'"
    for name in ("train.csv", *(f"{i}.txt" for i in range(9))):
        Path(name).touch()
    assert near_files(Path("tarin.csv")) == "did you mean 'train.csv'?"
    assert near_files(tmp_path / "tarin.csv") == "did you mean 'train.csv'?"
    assert near_files(Path("tarin.csv"), "*.txt") == (
        "in . there are: 0.txt, 1.txt, 2.txt, 3.txt, 4.txt, 5.txt, 6.txt, 7.txt and 1 more"
    )
    assert near_files(Path("0.tx"), wanted=Path.is_dir) is None
    (tmp_path / "loop.csv").symlink_to("loop.csv")
    assert "loop.csv" not in str(near_files(Path("loop.csv"), wanted=Path.is_symlink))
