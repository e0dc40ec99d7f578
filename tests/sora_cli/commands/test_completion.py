"""What the Tab key offers, as bash asks for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from methods.registry import method_names
from sora_cli.commands import completion
from sora_cli.recipe.library import recipe_names, sweep_names
from tests.shared_files import ROOT

_PROGRAM = """
import json, sys
from sora_cli.app import main
sys.argv = ["sora"]
try:
    main()
finally:
    sys.stderr.write(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""
HEAVY = {"torch", "transformers", "datasets", "numpy", "matplotlib", "huggingface_hub", "pyarrow"}


class Context:
    """What Typer knows of a line so far."""

    def __init__(self, *overrides: str) -> None:
        self.params = {"overrides": overrides}


def _overrides(incomplete: str, *before: str) -> list[str]:
    return completion.overrides(Context(*before), incomplete)  # type: ignore[arg-type]


def _asked(line: str, folder: Path) -> tuple[list[str], set[str]]:
    """What bash gets at the end of a line, and the packages that were imported for it."""
    words = line.replace("=", " = ").split(" ") if line.endswith("=") else line.split(" ")
    words = [word for word in words[:-1] if word] + words[-1:]
    variables = {
        "_SORA_COMPLETE": "complete_bash",
        "COMP_WORDS": "\n".join(words),
        "COMP_CWORD": str(len(words) - 1),
    }
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, **variables, "PYTHONPATH": str(ROOT)},
        check=True,
    )
    return done.stdout.splitlines(), set(json.loads(done.stderr))


@pytest.mark.parametrize(
    ("line", "some"),
    [
        ("sora tr", ["train"]),
        ("sora train quick", ["quickstart"]),
        ("sora eval x --recipe offi", ["official/rte"]),
        ("sora train rte training.grad", ["training.gradient_accumulation="]),
        ("sora inspect ru", ["runs/a"]),
    ],
)
def test_a_line_is_completed_without_torch(line: str, some: list[str], tmp_path: Path) -> None:
    (tmp_path / "runs" / "a").mkdir(parents=True)
    (tmp_path / "runs" / "a" / "report.json").touch()
    offered, modules = _asked(line, tmp_path)
    assert set(some) <= set(offered)
    assert all(word.startswith(line.split(" ")[-1]) for word in offered)
    assert not modules & HEAVY


def test_recipes_and_sweeps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").touch()
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "my.yml").touch()
    (tmp_path / "in" / "my.csv").touch()
    assert completion.recipes("") == [*recipe_names(), "mine.yaml"]
    assert completion.recipes("in/m") == ["in/my.yml"]
    assert completion.recipes("nowhere/") == []
    assert completion.sweeps("") == [*sweep_names(), "mine.yaml"]


def test_keys() -> None:
    everything = _overrides("")
    assert {"training.epochs=", "data.files=", "output.dir=", "method.r_max=", "method.r=",
            "task.metrics="} <= set(everything)  # fmt: skip
    assert len(everything) == len(set(everything))
    assert set(_overrides("training.epo")) == {"training.epochs=", "training.epochs=3.0"}
    chosen = _overrides("method.r", "method.name=lora")
    assert "method.r=" in chosen
    assert "method.r_max=" not in chosen
    assert chosen == _overrides("method.r", "method.name", "=", "lora")


@pytest.mark.parametrize(
    ("before", "incomplete", "expected"),
    [
        ((), "method.name=", [f"method.name={name}" for name in method_names()]),
        ((), "method.name=ada", ["method.name=adalora"]),
        (("method.name",), "", method_names()),  # bash, behind the equals sign
        (("method.name", "="), "ada", ["adalora"]),
        (("training.deterministic", "="), "", ["true", "false"]),
        ((), "training.schedule=co", [
            "training.schedule=cosine", "training.schedule=constant",
            "training.schedule=constant_with_warmup",
        ]),
        (("training.epochz", "="), "", []),
        ((), "training.epochz=1", []),
    ],
)  # fmt: skip
def test_values(before: tuple[str, ...], incomplete: str, expected: list[str]) -> None:
    assert _overrides(incomplete, *before) == expected


def test_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (
        "runs/a/report.json",
        "runs/a/adapter/adapter_config.json",
        "runs/b/notes.txt",
        ".hidden/c/report.json",
        "x/y/z/w/report.json",
        "lone/adapter_config.json",
    ):
        path = tmp_path / name  # fmt: skip
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert completion.runs("") == ["lone", "runs/a"]
    assert completion.runs("runs/a/") == ["runs/a/adapter"]
    assert completion.runs(f"{tmp_path}/ru") == [f"{tmp_path}/runs/a"]
    assert completion.runs("nowhere/") == []
