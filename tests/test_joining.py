"""The files for those who join or cite say what the project's other files say."""

from __future__ import annotations

import re
from typing import Any

import yaml

from sora_cli import __version__
from tests.shared_files import ROOT


def _read(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def test_the_citation_has_the_version_and_the_licence() -> None:
    cited = _read("CITATION.cff")
    assert {"cff-version", "message", "title", "authors"} <= set(cited), "the format needs these"
    assert str(cited["version"]) == __version__
    assert f'license = "{cited["license"]}"' in (ROOT / "pyproject.toml").read_text()
    papers = {paper["identifiers"][0]["value"] for paper in cited["references"]}
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert papers == {f"arXiv:{number}" for number in re.findall(r"arxiv.org/abs/(\S+?)\)", readme)}


def test_a_commit_is_checked_as_make_check_does() -> None:
    (local,) = _read(".pre-commit-config.yaml")["repos"]
    hooks = {hook["entry"].removeprefix(".venv/bin/") for hook in local["hooks"]}
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (recipe,) = re.findall(r"^check:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    checks = {line.strip().removeprefix("$(BIN)/") for line in recipe.splitlines()}
    assert hooks == {check.removesuffix(" .") for check in checks}


def test_the_workflow_does_what_every_change_passes() -> None:
    name = ".github/workflows/ci.yml"
    (job,) = _read(name)["jobs"].values()
    (command,) = (step["run"] for step in job["steps"] if "run" in step)
    assert (ROOT / command).stat().st_mode & 0o100
    assert "NOT TRIED THERE" in (ROOT / name).read_text(encoding="utf-8")
