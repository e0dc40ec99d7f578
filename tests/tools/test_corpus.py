"""A corpus of a few kinds: the same record twice, and a difference that is named."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from tests import warm
from tests.shared_files import ROOT
from tools.corpus.__main__ import compare
from tools.corpus.compare import report

KINDS = "own/random-causal-llama,own/packed-4,peft-*/case-dora,damaged/nan,refused/ia3"
VERBS = "inspect,prune/rank,export/packed*,merge/plain"


def corpus(*words: str) -> None:
    """Call it in a process of its own: it forks, and pytest's process may have threads."""
    command = [warm.python(warm.OURS), "-m", "tools.corpus", *words, "--kinds", KINDS]
    subprocess.run([*command, "--jobs", "2"], cwd=ROOT, check=True)


def record(folder: Path, name: str) -> Path:
    out = folder / name
    corpus("run", str(folder / "corpus"), "--verbs", VERBS, "--out", str(out))
    return out


def test_a_difference_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus("make", str(tmp_path / "corpus"))
    first = record(tmp_path, "first.json")
    rows: dict[str, dict[str, Any]] = json.loads(first.read_text())["rows"]
    assert len(rows) == 5
    for kind, each in rows.items():
        assert "process" not in each, each
        is_wrong = kind.startswith(("damaged/", "refused/"))
        assert {bool(row["exit"]) for row in each.values()} == {is_wrong} or "dora" in kind
        assert str(tmp_path) not in json.dumps(each)
    assert rows["own/random-causal-llama"]["merge/plain"]["files"]
    assert compare(first, record(tmp_path, "again.json")) == 0

    adapter = tmp_path / "corpus" / "own" / "random-causal-llama" / "adapter"
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    tensors[min(tensors)][0, 0] += 1
    save_file(tensors, file, {"format": "pt"})
    capsys.readouterr()
    assert compare(first, record(tmp_path, "changed.json")) == 1
    told = capsys.readouterr().out
    assert "merge/plain: 1 kinds differ\n  own/random-causal-llama\n" in told
    assert "merge-plain/model.safetensors differs" in told
    assert "dora" not in told


ENDS = """
import os, signal, threading, time
from tools.corpus.forks import in_forks

def work(name):
    if name == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if name == "fails":
        raise ValueError(name)
    while name == "hangs":
        time.sleep(1)
    return f"{name} in {threading.current_thread().name}"

for names, limit in ((["a", "dies", "b", "fails", "c"], 900), (["hangs"], 0.1)):
    for name, got in in_forks(names, work, 2, limit):
        print(name + ":", getattr(got, "text", got).splitlines()[-1])
"""


def test_processes_are_forks_of_this_thread_however_they_end() -> None:
    done = subprocess.run(
        [sys.executable, "-c", ENDS], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [
        "a: a in MainThread",
        "dies: the process ended with -9",
        "b: b in MainThread",
        "fails: ValueError: fails",
        "c: c in MainThread",
        "hangs: took over 0.1 s",
    ]


def test_rows_that_are_gone_and_files_of_one_side() -> None:
    row = {"command": "x", "exit": 0, "stdout": "a\nb", "stderr": "", "files": {"f": "1"}}
    other = {**row, "exit": 2, "stdout": "a\nc\nd", "files": {"g": "1"}}
    told = report({"k": {"v": row, "w": row}}, {"k": {"v": other}, "l": {"v": row}})
    assert told == [
        "v: 2 kinds differ", "  k", "    exit: - 0", "          + 2", "    stdout: - b",
        "            + c", "    f is in the first only", "    g is in the second only", "  l",
        "    only in the second", "w: 1 kinds differ", "  k", "    only in the first",
    ]  # fmt: skip
