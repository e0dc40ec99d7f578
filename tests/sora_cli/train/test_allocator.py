"""Freed memory stays with the process."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from sora_cli.train.machine import keep_freed_memory

FAULTS = """
import resource, sys, torch
if sys.argv[1] == "kept":
    from sora_cli.train.machine import keep_freed_memory
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
