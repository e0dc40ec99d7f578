"""Runs that released programs stored (`tests/stored`): opened, used and resumed by this program."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from sora_cli.app import run
from sora_cli.core.exit_codes import OK
from tests.helpers_runs import write_rows
from tests.sora_cli.experiments.auto.support import certificate_of
from tests.stored.make import COMMANDS, KILLED, ROOT, machine

FOLDERS = sorted(path.parent for path in Path(__file__).parents[1].glob("stored/*/machine.json"))
FINISHED = ["cut", "sora", "auto", "answers", "healed", "sized"]
"""Runs in runs/ with an adapter."""
RESUMED = [name for name in KILLED if name != "path-killed"]


@pytest.fixture(params=FOLDERS, ids=lambda folder: folder.name)
def stored(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a folder, where commands run."""
    copy = Path(shutil.copytree(request.param, tmp_path / "stored"))
    for path in copy.rglob("*.json"):
        path.write_text(path.read_text(encoding="utf-8").replace(ROOT, str(copy)), encoding="utf-8")
    monkeypatch.chdir(copy)
    return copy


def begins(name: str, words: Sequence[str], *more: str) -> list[str]:
    """The command that made a stored run, or goes on with it."""
    place = [] if words[0] == "prune" else [f"output.dir=runs/{name}"]
    return [*words, *place, "--no-verify", *more] if words[0] != "path" else [*words, *place]


def same_adapter(one: str, other: str) -> None:
    """Two adapters are equal: to the byte on the machine that made the folder, else nearly.

    Other processors and other builds of torch add the same numbers in another order.
    """
    weights = [Path("runs", name, "adapter", "adapter_model.safetensors") for name in (one, other)]
    if made_here():
        assert weights[0].read_bytes() == weights[1].read_bytes()
        return
    first, second = (load_file(path) for path in weights)
    assert first.keys() == second.keys()
    for key, tensor in first.items():
        assert tensor.shape == second[key].shape
        assert tensor.allclose(second[key], rtol=1e-3, atol=1e-5), key


def figures(name: str) -> dict[str, Any]:
    """A certificate without its layout's number and keys, and without the words of a version."""
    certificate = certificate_of(Path("runs", name))
    later = {"schema_version": True, "scope": True, "bound": {"statistic", "best_case"}}
    return certificate.model_dump(exclude=later)


def made_here() -> bool:
    """Tell whether this machine computes as the one that made the folder."""
    found: dict[str, str] = json.loads(Path("machine.json").read_bytes())
    return found == machine()


def test_there_is_a_folder() -> None:
    assert "d2d0db02" in {folder.name for folder in FOLDERS}


def statuses(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """What `sora list` says of each run in runs/."""
    assert run(["list", "runs", "--json"]) == OK
    entries = json.loads(capsys.readouterr().out)
    return {Path(entry["directory"]).name: entry["status"] for entry in entries}


@pytest.mark.usefixtures("stored")
def test_runs_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    expected = dict.fromkeys(FINISHED, "finished") | dict.fromkeys(KILLED, "interrupted")
    found = statuses(capsys)
    assert {name: found[name] for name in expected} == expected


@pytest.mark.usefixtures("stored")
@pytest.mark.parametrize("name", [*FINISHED, "path"])
def test_a_run_is_reported(name: str) -> None:
    assert run(["report", f"runs/{name}"]) == OK
    assert "<html" in Path("runs", name, "report.html").read_text(encoding="utf-8")


@pytest.mark.usefixtures("stored")
@pytest.mark.parametrize("name", [*FINISHED, "pruned"])
def test_an_adapter_is_inspected_merged_and_predicted_with(name: str) -> None:
    folder = f"runs/{name}"
    assert run(["inspect", folder]) == OK
    assert run(["merge", folder, "-o", "merged"]) == OK
    rows = write_rows(Path("few.jsonl"), [{"sentence1": "a cat", "sentence2": "a dog"}])
    answers = [f"{target}.jsonl" for target in ("adapter", "merged")]
    for target, out in zip((folder, "merged"), answers, strict=True):
        assert run(["predict", target, rows, "-o", out]) == OK
    one, other = (json.loads(Path(out).read_bytes()) for out in answers)
    assert one == {**other, "probability": pytest.approx(other["probability"], abs=1e-6)}


@pytest.mark.usefixtures("stored")
@pytest.mark.parametrize("name", ["auto", "answers"])
def test_a_certificate_is_verified_again(name: str) -> None:
    assert run(["verify", f"runs/{name}", "--certificate"]) == OK


@pytest.mark.usefixtures("stored")
def test_an_adapter_is_cut_and_healed_as_it_was() -> None:
    words = [word.replace("runs/healed", "runs/again") for word in COMMANDS["healed"]]
    assert run([*words, "--no-verify"]) == OK
    same_adapter("again", "healed")


@pytest.mark.usefixtures("stored")
def test_an_adapter_is_trained_further() -> None:
    words = ["train", "cut.yaml", "method={name: lora, r: 3}", "training.max_steps=2"]
    words += ["output.dir=runs/further", "--no-verify"]
    for name in ("cut", "auto", "healed"):
        assert run([*words, f"start.adapter=runs/{name}", "--force"]) == OK


@pytest.mark.usefixtures("stored")
def test_a_checkpoint_is_trained_on() -> None:
    words = ["train", "sora.yaml", "start.checkpoint=runs/sora-killed", "start.step=5"]
    assert run([*words, "output.dir=runs/fork", "--no-verify"]) == OK
    same_adapter("fork", "sora")


@pytest.mark.usefixtures("stored")
@pytest.mark.parametrize("name", RESUMED)
def test_a_killed_run_ends_as_one_that_nobody_disturbed(name: str) -> None:
    words = KILLED[name][2]
    assert run(begins(name, words, *[] if words[0] == "auto" else ["--resume"])) == OK
    whole = name.removesuffix("-killed")
    same_adapter(name, whole)
    if words[0] == "auto" and made_here():
        assert figures(name) == figures(whole)


@pytest.mark.usefixtures("stored")
def test_a_killed_path_ends_as_one_that_nobody_disturbed() -> None:
    assert run(begins("path-killed", KILLED["path-killed"][2])) == OK
    for stage in ("00", "01"):
        same_adapter(f"path-killed/stages/{stage}", f"path/stages/{stage}")
    assert run(["pick", "runs/path-killed", "--keep", "0.9", "-o", "picked"]) == OK


@pytest.mark.long
@pytest.mark.usefixtures("stored")
def test_a_sweep_trains_the_run_that_is_missing() -> None:
    Path("runs/sweep/target_r-2").rename("runs/whole")
    assert run([*COMMANDS["sweep"], "output.dir=runs/sweep", "--no-verify"]) == OK
    same_adapter("sweep/target_r-2", "whole")
