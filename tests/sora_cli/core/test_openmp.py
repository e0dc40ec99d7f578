"""How long OpenMP's threads wait awake: chosen before torch is there, unless the user has."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from sora_cli.core.openmp import CHOSEN_BY, TURNS, wait_briefly
from tests.shared_files import ROOT

_PROGRAM = """
import importlib, json, os, runpy, sys
import sora_cli.app
sora_cli.app.main = lambda: None
sys.argv = ["sora"]
start = {"module": lambda: runpy.run_module("sora_cli", run_name="__main__"),
         "script": lambda: importlib.import_module("sora_cli.__main__").main()}
start[__WAY__]()
print(json.dumps([os.environ.get("GOMP_SPINCOUNT"), "torch" in sys.modules]))
"""


@pytest.mark.parametrize("way", ["module", "script"])
def test_each_way_to_start(way: str) -> None:
    inherited = {name: value for name, value in os.environ.items() if name not in CHOSEN_BY}
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM.replace("__WAY__", repr(way))], capture_output=True,
        text=True, env=inherited, cwd=ROOT, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout) == [str(TURNS), False]


@pytest.mark.parametrize(
    ("own", "found"),
    [({}, str(TURNS)), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)],
)
def test_a_choice_of_the_users_stays(
    own: dict[str, str], found: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", dict(own))
    wait_briefly()
    assert os.environ.get("GOMP_SPINCOUNT") == found
