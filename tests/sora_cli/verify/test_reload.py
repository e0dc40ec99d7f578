"""The fresh process of `sora_cli.verify.reload`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import sora_cli
from sora_cli.verify import reload
from tests.shared_files import ROOT

_LOOK = """
import importlib.util, json, sora_cli
rooms = ("core", "data", "model", "recipe", "run", "train")
print(json.dumps([sora_cli.__file__, [r for r in rooms if importlib.util.find_spec(r)]]))
"""


@pytest.mark.parametrize("known", [None, "/nowhere"])
def test_the_child_finds_this_package_and_not_its_rooms(
    tmp_path: Path, known: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user's `import data` must not find `sora_cli/data`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    if known is not None:
        monkeypatch.setenv("PYTHONPATH", known)
    done = subprocess.run(
        [sys.executable, "-c", _LOOK],
        env=reload._environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    file, found = json.loads(done.stdout)
    assert Path(file) == Path(sora_cli.__file__).resolve() == ROOT / "sora_cli" / "__init__.py"
    assert found == []
