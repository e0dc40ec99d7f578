"""Names of outputs."""

from __future__ import annotations

from pathlib import Path

import pytest

from sora_cli.core.outputs import output_path


@pytest.mark.parametrize("absolute", [False, True])
def test_a_name_means_the_same_once_its_directories_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, absolute: bool
) -> None:
    """`missing/../x` is x as soon as `missing` is made, and an x there would be replaced unseen."""
    monkeypatch.chdir(tmp_path)
    start = tmp_path.resolve() if absolute else Path()
    found = output_path(start / "missing/../new.csv")
    assert found == start / "new.csv"
    (tmp_path / "missing").mkdir()
    assert output_path(start / "missing/../new.csv") == found
