"""The wheel holds everything the tool needs outside the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.shared_files import ROOT


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built and installed (without its dependencies) into a directory of its own."""
    folder = tmp_path_factory.mktemp("wheel")
    _python("-m", "build", "--wheel", "--no-isolation", "-o", str(folder), str(ROOT))
    (wheel,) = folder.glob("sora_cli-*.whl")
    target = folder / "site"
    _python("-m", "pip", "install", "-q", "--no-deps", "--no-index", "-t", str(target), str(wheel))
    return target


def _python(*arguments: str, cwd: Path = ROOT, path: Path | None = None) -> str:
    environment = dict(os.environ)
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_recipes_are_found_outside_the_checkout(installed: Path, tmp_path: Path) -> None:
    where = "import sora_cli; print(sora_cli.__file__)"
    assert _python("-c", where, cwd=tmp_path, path=installed).startswith(str(installed))
    listed = _python("-m", "sora_cli", "recipes", cwd=tmp_path, path=installed)
    assert "quickstart" in listed
    assert "official/rte" in listed
    shown = _python("-m", "sora_cli", "recipes", "show", "rte", cwd=tmp_path, path=installed)
    assert shown.strip() == (ROOT / "recipes" / "rte.yaml").read_text(encoding="utf-8").strip()
    _python("-m", "sora_cli", "recipes", "copy", "--to", "mine", cwd=tmp_path, path=installed)
    copied = {p.relative_to(tmp_path / "mine") for p in (tmp_path / "mine").rglob("*.yaml")}
    assert copied == {p.relative_to(ROOT / "recipes") for p in (ROOT / "recipes").rglob("*.yaml")}


def test_the_script_is_installed(installed: Path, tmp_path: Path) -> None:
    assert (installed / "bin" / "sora").is_file()
    version = _python("-m", "sora_cli", "--version", cwd=tmp_path, path=installed)
    assert version.startswith("sora ")
