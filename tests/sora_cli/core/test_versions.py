"""A package whose version does not fit is named, with its bound: no fault of the program."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from sora_cli import __version__
from sora_cli.core import versions
from sora_cli.core.boundary import guarded
from sora_cli.core.errors import SoraError
from sora_cli.core.timing import importing
from sora_cli.core.versions import (
    check_versions,
    requirements,
    shown,
    too_new,
    too_old,
    version_error,
)
from tests.shared_files import ROOT

NEEDS = f"sora-cli {__version__} needs"


@pytest.fixture
def bounds() -> dict[str, str]:
    return {r.name: shown(r) for r in requirements()}


def _install(monkeypatch: pytest.MonkeyPatch, **fakes: str | None) -> None:
    """Have other versions installed; None: a package is not."""
    real = versions.installed

    def installed(package: str) -> str | None:
        return fakes[package] if package in fakes else real(package)

    monkeypatch.setattr(versions, "installed", installed)


def _fail(error: Exception) -> Any:
    raise error


def test_an_old_package_is_told_before_anything_is_loaded(
    tmp_path: Path, bounds: dict[str, str]
) -> None:
    """By the command itself, from what lies first on Python's path."""
    old = tmp_path / "site" / "transformers-4.57.6.dist-info"
    old.mkdir(parents=True)
    (old / "METADATA").write_text("Metadata-Version: 2.1\nName: transformers\nVersion: 4.57.6\n")
    path = os.pathsep.join([str(old.parent), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-m", "sora_cli", "train", "offline/digits"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True,
    )  # fmt: skip
    wanted = bounds["transformers"]
    assert done.stderr.splitlines() == [
        f"error: transformers 4.57.6 is installed; {NEEDS} {wanted}",
        f"  pip install '{wanted}'",
    ]
    assert done.returncode == 2


def test_versions_that_fit_are_silent() -> None:
    check_versions()
    assert version_error(ZeroDivisionError()) is None


def test_two_old_ones_are_told_together(
    monkeypatch: pytest.MonkeyPatch, bounds: dict[str, str]
) -> None:
    _install(monkeypatch, torch="2.5.1+cpu", numpy="1.25.0")
    with pytest.raises(SoraError) as caught, importing():
        pass
    both = [bounds["numpy"], bounds["torch"]]
    assert caught.value.lines() == [
        f"numpy 1.25.0 is installed, torch 2.5.1+cpu is installed; {NEEDS} {', '.join(both)}",
        f"pip install '{both[0]}' '{both[1]}'",
    ]


def test_a_package_that_is_too_new_is_blamed_for_what_failed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], bounds: dict[str, str]
) -> None:
    _install(monkeypatch, transformers="6.1.0")
    check_versions()  # it may work
    assert guarded(lambda: _fail(AttributeError("no attribute '_tr_loss'"))) == 2
    assert capsys.readouterr().err.splitlines() == [
        f"error: transformers 6.1.0 is installed; {NEEDS} {bounds['transformers']}",
        "  AttributeError: no attribute '_tr_loss'",
        f"  pip install '{bounds['transformers']}'",
    ]


def test_a_package_that_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], bounds: dict[str, str]
) -> None:
    _install(monkeypatch, torch=None, wandb=None)  # the latter is an extra, which nobody imported
    assert guarded(lambda: _fail(ModuleNotFoundError("No module named 'torch'", name="torch"))) == 2
    first = capsys.readouterr().err.splitlines()[0]
    assert first == f"error: torch is not installed; {NEEDS} {bounds['torch']}"


def test_a_name_that_a_package_lacks(
    capsys: pytest.CaptureFixture[str], bounds: dict[str, str]
) -> None:
    def command() -> None:
        from typer import no_such_name  # type: ignore[attr-defined]  # noqa: F401

    assert guarded(command) == 2
    told = capsys.readouterr().err.splitlines()
    assert told[0].startswith("error: cannot import name 'no_such_name' from 'typer'")
    assert told[1:] == [
        f"  typer {metadata.version('typer')} is installed; {NEEDS} {bounds['typer']}",
        "  another version may have it: pip install --upgrade sora-cli typer",
    ]


def test_an_import_of_its_own_that_fails_is_a_fault_of_the_program(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def command() -> None:
        from sora_cli.core.words import no_such_name  # type: ignore[attr-defined]  # noqa: F401

    assert guarded(command) == 1
    assert "fault of the program" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("version", "old", "new"),
    [
        ("4.57.6", True, False),
        ("5.0.0rc1", False, False),
        ("5", False, False),
        ("5.24.0a0+local.1", False, False),
        ("6.0.0", False, True),
        ("10.0", False, True),
    ],
)
def test_versions_are_compared_by_their_numbers(version: str, old: bool, new: bool) -> None:
    requirement = Requirement("transformers>=5.0,<6")
    assert (too_old(requirement, version), too_new(requirement, version)) == (old, new)


def test_the_bounds_are_those_of_pyproject() -> None:
    found = {r.name: r for r in requirements()}
    assert re.fullmatch(r"transformers>=5[\d.]*,<6", shown(found["transformers"]))
    assert "extra" in str(found["bitsandbytes"].marker)
