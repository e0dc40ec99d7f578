"""Freed memory stays with the process."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from sora_cli.app import run
from sora_cli.core.allocator import keep_freed_memory
from tests.sora_cli.adapter.test_spectra import write_peft

FAULTS = """
import resource, sys, torch
if sys.argv[1] == "kept":
    from sora_cli.core.allocator import keep_freed_memory
    keep_freed_memory()
def work():
    for _ in range(20):
        torch.zeros(10_000_000)
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.long
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_blocks_are_taken_from_the_process_itself() -> None:
    assert keep_freed_memory()
    faults = {
        name: int(subprocess.run([sys.executable, "-c", FAULTS, name], capture_output=True).stdout)
        for name in ("kept", "given back")
    }
    assert faults["kept"] < faults["given back"] / 20


@pytest.mark.parametrize("words", ["inspect A", "prune A -o B", "export A -o B --no-verify"])
def test_commands_on_large_files_ask_for_it(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[None] = []
    module = f"sora_cli.commands.{words.partition(' ')[0]}"
    monkeypatch.setattr(f"{module}.keep_freed_memory", lambda: asked.append(None))
    write_peft(tmp_path / "A", {"layers.0.q": (8, 8)})
    given = {name: str(tmp_path / name) for name in "AB"}
    assert run([given.get(word, word) for word in words.split()]) == 0
    assert len(asked) == 1
