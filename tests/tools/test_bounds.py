"""Every requirement has a lower bound, which `make test-oldest` installs exactly."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

from tests.shared_files import ROOT
from tools.bounds import lower_bounds

TOOLS = {"types-PyYAML", "sora-cli"}  # stubs for mypy; the extras of this very package


def test_each_requirement_has_one() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    names = {line.partition(">=")[0].partition("[")[0] for group in groups for line in group}
    assert set(lower_bounds()) == names - TOOLS


def test_extras_and_upper_bounds(tmp_path: Path) -> None:
    file = tmp_path / "pyproject.toml"
    file.write_text(
        '[project]\ndependencies = ["one>=5,<6"]\n'
        "[project.optional-dependencies]\nextra = ['two-b[hf]>=0.4.12', 'three']\n"
    )
    assert lower_bounds(file) == {"one": "5", "two-b": "0.4.12"}


def test_the_lines_that_pip_reads() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tools.bounds", "torch==2.13.0"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert "torch==2.13.0" in lines
    assert f"transformers=={lower_bounds()['transformers']}" in lines
