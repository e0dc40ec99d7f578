"""`benchmarks.gpu` at its tiny size on the device: nothing of it on the wrong one."""

from __future__ import annotations

import re
import sys

import pytest

from benchmarks.gpu import __main__ as program
from benchmarks.gpu.rows import ROWS
from tests.rehearsal import fake

pytest.importorskip("peft")
NO_CODE = () if fake.REAL else ("4-bit base", "compiled blocks")  # bitsandbytes', inductor's
TITLES = [row.title for row in ROWS if not row.title.startswith(NO_CODE)]


@pytest.mark.usefixtures("watch")
def test_rows_and_their_gradients(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu", "--tiny", "--rounds", "1", "--rows", *TITLES])
    assert program.main() == 0
    shown = capsys.readouterr().out
    skipped = re.findall(r"^- tiny, (.+?)(?: \(.*\))?: ", shown, re.MULTILINE)
    for title in TITLES:
        assert (f"\n| {title} | " in shown) == (title not in skipped)
    assert len(skipped) < len(TITLES) / 2
