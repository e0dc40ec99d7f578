"""`sora recipes`: list, show, copy."""

import json
from pathlib import Path

import pytest

from sora_cli.app import run
from sora_cli.recipe.library import recipe_names, recipes_dir, sweep_names
from sora_cli.recipe.load import load_recipe
from tests.helpers_errors import refused


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def copied():
    return sorted(p.relative_to("out").as_posix() for p in Path("out").rglob("*") if p.is_file())


@pytest.mark.parametrize("arguments", [["recipes"], ["recipes", "list"]])
def test_each_recipe_is_listed_with_its_title(arguments, capsys):
    assert run(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == recipe_names()
    assert lines[0].startswith("quickstart")
    assert all(len(line.split()) > 3 for line in lines)


def test_the_list_as_json(capsys):
    assert run(["recipes", "list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert list(listed["recipes"]) == recipe_names()
    assert listed["sweeps"] == sweep_names()
    assert all(listed["recipes"].values())


def test_show_prints_the_file(capsys):
    assert run(["recipes", "show", "official/rte"]) == 0
    assert capsys.readouterr().out == (recipes_dir() / "official/rte.yaml").read_text()


def test_copies_bring_what_they_extend_and_load(capsys):
    assert run(["recipes", "copy", "official/rte", "--to", "out"]) == 0
    assert copied() == [
        *("base/glue.yaml", "base/official.yaml", "official/rte.yaml", "rte.yaml", "schema.json")
    ]
    assert "next: sora train out/official/rte.yaml" in capsys.readouterr().err
    assert load_recipe("out/official/rte.yaml").resolved() == load_recipe("official/rte").resolved()


def test_without_names_everything_is_copied():
    assert run(["recipes", "copy", "--to", "out"]) == 0
    every = [p for p in recipes_dir().rglob("*") if p.suffix in {".yaml", ".json", ".py"}]
    assert len(copied()) == len(every)


def test_changed_copies_are_not_overwritten(capsys):
    assert run(["recipes", "copy", "rte", "--to", "out"]) == 0
    assert run(["recipes", "copy", "rte", "--to", "out"]) == 0  # the same content is no clash
    Path("out/rte.yaml").write_text("mine")
    refused(capsys, "recipes", "copy", "rte", "--to", "out")
    assert Path("out/rte.yaml").read_text() == "mine"
    assert run(["recipes", "copy", "rte", "--to", "out", "--force"]) == 0
    assert Path("out/rte.yaml").read_text() != "mine"
