"""Ctrl-C in real processes: what `sora predict` keeps, and how `sora chat` leaves."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests import warm
from tests.helpers_chat import write_chat_base
from tests.helpers_models import tiny_bert
from tests.helpers_runs import pair_rows, tiny_tokenizer, write_rows
from tests.shared_files import ROOT

ROWS = 40_000
"""Rows to be answered in 10 parts: seconds pass between the second part and the end."""


def started(*words: str) -> subprocess.Popen[str]:
    environment = {**warm.ENVIRONMENT, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [warm.python(), "-m", "sora_cli", *words],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=environment,
    )  # fmt: skip


@pytest.mark.long
def test_predict_keeps_what_is_done(tmp_path: Path) -> None:
    tiny_bert(num_labels=2).save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    rows = [{k: v for k, v in row.items() if k != "label"} for row in pair_rows(ROWS)]
    out = tmp_path / "out.csv"
    words = ["predict", str(tmp_path / "model"), write_rows(tmp_path / "a.jsonl", rows)]
    process = started(*words, "-o", str(out))
    second = tmp_path / "out.csv.unfinished" / "1"  # the first one is in the record by then
    while process.poll() is None and not second.exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    told = process.communicate(timeout=300)[1]
    assert process.returncode == 130, told
    assert "interrupted by SIGINT" in told
    assert "rows are done, in" in told
    assert not out.exists()
    process = started(*words, "-o", str(out))
    told = process.communicate(timeout=600)[1]
    assert process.returncode == 0, told
    assert "continuing from there" in told
    assert len(out.read_text().splitlines()) == ROWS + 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.jsonl", "model", "out.csv"]


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_chat_leaves_at_the_prompt(tmp_path: Path, number: int) -> None:
    write_chat_base(tmp_path / "base")
    process = started("chat", str(tmp_path / "base"), "--greedy", "--max-new-tokens", "3")
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("cat sees\n")
    process.stdin.flush()
    assert process.stdout.readline().strip()  # answered, as the line came
    process.send_signal(number)
    process.wait(timeout=300)  # before its input ends, which would let it leave with 0
    told = process.communicate()[1]
    assert process.returncode == 128 + number, told
    assert "Traceback" not in told
