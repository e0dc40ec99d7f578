"""What may not be read or written is named as the user named it, with the system's own reason."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from methods.factors import LowRankFactors
from sora_cli.adapter.adapter import Adapter
from sora_cli.adapter.directory import write_adapter
from sora_cli.adapter.metadata import BaseReference
from sora_cli.core.atomic import new_directory, write_text_atomic
from tests.helpers_models import tiny_bert
from tests.helpers_reports import write_report
from tests.helpers_runs import write_recipe
from tests.shared_files import ROOT

PROGRAM = """
import contextlib, io, json, sys
from sora_cli.app import run
told = []
for words in json.loads(sys.argv[1]):
    err, out = io.StringIO(), io.StringIO()
    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(out):
        code = run(words)
    told.append([code, err.getvalue()])
print(json.dumps(told))
"""
AS_ANYBODY = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
"""Root without the right to read and write everything."""
NEW = {
    "prune": ["prune", "run", "-o", "closed/new"],
    "export": ["export", "run", "-o", "closed/new"],
    "merge": ["merge", "run", "-o", "closed/new"],
    "compare": ["compare", "run", "-o", "closed/new.md"],
    "plot": ["inspect", "run", "--plot", "closed/new.png"],
    "page": ["report", "run", "-o", "closed/new.html"],
    "train": ["train", "tiny.yaml", "output.dir=closed/new"],
    "train there": ["train", "tiny.yaml", "output.dir=shut"],
}
UNREADABLE = {
    "weights": ["inspect", "adapter"],
    "report": ["train", "tiny.yaml", "output.dir=sealed"],
    "base": ["train", "tiny.yaml", "output.dir=other", "model.path=hidden"],
}


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    write_recipe(tmp_path, tiny_bert(num_labels=2))
    write_report(tmp_path / "run")
    layers = {"layer.0.query": LowRankFactors(torch.ones(1, 8), torch.ones(8, 1))}
    adapter = Adapter.of(layers, {}, (), None, BaseReference("base", "base"))
    write_adapter(tmp_path / "adapter", adapter)
    write_adapter(tmp_path / "run" / "adapter", adapter)
    shutil.copytree(tmp_path / "base", tmp_path / "hidden")
    shutil.copytree(tmp_path / "run", tmp_path / "sealed")
    closed = [
        tmp_path / "closed",
        tmp_path / "sealed" / "report.json",
        tmp_path / "adapter" / "adapter_model.safetensors",
        tmp_path / "hidden" / "model.safetensors",
    ]
    closed[0].mkdir()
    for path in closed:
        path.chmod(0o500 if path.is_dir() else 0)
    (tmp_path / "shut").mkdir(mode=0)
    yield tmp_path
    closed[0].chmod(0o700)
    (tmp_path / "shut").chmod(0o700)


@pytest.mark.skipif(
    os.geteuid() == 0 and shutil.which("setpriv") is None,
    reason="root may do everything, and setpriv is not installed",
)
def test_the_systems_reason_and_the_users_name(place: Path) -> None:
    commands = NEW | UNREADABLE
    program = [sys.executable, "-c", PROGRAM, json.dumps(list(commands.values()))]
    done = subprocess.run(
        [*(AS_ANYBODY if os.geteuid() == 0 else []), *program],
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
        capture_output=True,
        text=True,
    )
    for (name, words), (code, text) in zip(commands.items(), json.loads(done.stdout), strict=True):
        assert code == 2, text
        assert "permission denied" in text, name
        assert not any(part in text for part in ("o such file", ".partial", ".lock", "Errno"))
        if name in NEW:
            assert words[-1].removeprefix("output.dir=") in text


def test_errors_name_the_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there").mkdir()
    with pytest.raises(OSError, match="'out'"), new_directory(Path("out")) as folder:
        (folder / "x" / "y").write_text("x")  # there is no x in the temporary directory
    with pytest.raises(OSError, match="'there'"):
        write_text_atomic(Path("there"), "x")
    write_text_atomic(Path("new/../file"), "x")
    assert Path("file").read_text() == "x"
