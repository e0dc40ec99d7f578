"""Stored searches whose design left: their adapters serve as all others, the search is over."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sora_cli.app import run
from sora_cli.core.exit_codes import NO_VERDICT, OK
from tests.e2e.test_stored_runs import begins, statuses, stored

__all__ = ["stored"]
LEFT = ["crossed", "refit", "both"]
KILLED = ["crossed-killed", "crossed-refit-killed", "both-killed"]
GONE = {"--cross-fit", "--refit", "auto.basis=both"}


@pytest.mark.usefixtures("stored")
def test_runs_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    expected = dict.fromkeys(LEFT, "finished") | dict.fromkeys(KILLED, "interrupted")
    found = statuses(capsys)
    assert {name: found[name] for name in expected} == expected


@pytest.mark.usefixtures("stored")
@pytest.mark.parametrize("name", LEFT)
def test_an_adapter_is_used(name: str) -> None:
    folder = f"runs/{name}"
    assert run(["report", folder]) == OK
    assert run(["inspect", folder]) == OK
    assert run(["merge", folder, "-o", "merged"]) == OK
    assert run(["predict", folder, "inputs.jsonl", "-o", "answers.jsonl"]) == OK
    heal = ["prune", folder, "-o", "healed", "--mean-rank", "1", "--heal", "2", "--no-verify"]
    assert run(heal) == OK
    further = ["train", "cut.yaml", "method={name: lora, r: 3}", "training.max_steps=2"]
    words = [*further, f"start.adapter={folder}", "output.dir=further", "--no-verify"]
    assert run(words) == OK


@pytest.mark.usefixtures("stored")
def test_a_pruned_adapter_tells_of_both_tests(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", "runs/pruned-both"]) == OK
    assert "both" in capsys.readouterr().out


@pytest.mark.usefixtures("stored")
@pytest.mark.parametrize("name", LEFT)
def test_a_certificate_is_not_verified_again(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["verify", f"runs/{name}", "--certificate"]) == NO_VERDICT
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.usefixtures("stored")
@pytest.mark.parametrize("name", KILLED)
def test_a_killed_search_is_not_continued(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    made = json.loads(Path("left.json").read_bytes())["killed"][name][2]
    words = [word for word in made if word not in GONE]
    before = {path: path.read_bytes() for path in Path("runs", name).rglob("*.json")}
    assert run(begins(name, words)) == NO_VERDICT
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert {path: path.read_bytes() for path in Path("runs", name).rglob("*.json")} == before


@pytest.mark.usefixtures("stored")
@pytest.mark.parametrize("name", ["crossed", "crossed-killed"])
def test_a_search_that_starts_over_leaves_nothing_of_the_former(name: str) -> None:
    words = ["auto", "auto.yaml", f"output.dir=runs/{name}", "--force", "--no-verify"]
    assert run(words) in {OK, NO_VERDICT}
    assert not Path("runs", name, "halves").exists()
    assert Path("runs", name, "certificate.json").is_file()
