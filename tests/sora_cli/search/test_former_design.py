"""Searches of earlier versions with another design: shown, and neither continued nor tested."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sora_cli.app import run
from sora_cli.core.exit_codes import NO_VERDICT, OK
from sora_cli.search.former_design import former_design
from sora_cli.search.record import AutoRecord, read_auto
from tests.helpers_reports import write_report
from tests.sora_cli.experiments.auto.support import auto_recipe, certificate_of
from tests.sora_cli.search.test_certificate import certificate

ROW_SET = {"split": "train", "rows": 54, "digest": "d"}
NOW = {"design": "held out", "halves": [], "final": None}
"""Keys of a certificate of layout 3 whose search had today's design."""
FORMER: dict[str, tuple[dict[str, Any], str]] = {
    "halves": ({"halves": [{"full": {}, "candidates": []}]}, "on both halves of its rows"),
    "both": ({"promise": {"basis": "both"}, "basis": "both"}, "by labels and by answers"),
    "final": ({"final": {"digest": "sha256:a"}}, "training the size found on all rows"),
}


def write(folder: Path, name: str, values: dict[str, Any]) -> Path:
    file = folder / name
    file.write_text(json.dumps(values).replace("NaN", "null"), encoding="utf-8")
    return file


def test_the_same_design_is_read_as_before(tmp_path: Path) -> None:
    values = certificate().model_dump(mode="json") | NOW
    values["candidates"][0]["test"]["parts"] = []
    file = write(tmp_path, "certificate.json", values)
    assert former_design(file) is None
    found = certificate_of(tmp_path)
    assert found.model_dump_json() == certificate().model_dump_json()


@pytest.mark.parametrize("text", ["", "[]", '"half 1"', '{"rows": 3, "promise": null}'])
def test_damage_is_left_to_other_readers(tmp_path: Path, text: str) -> None:
    assert former_design(tmp_path / "auto.json") is None
    (tmp_path / "auto.json").write_text(text)
    assert former_design(tmp_path / "auto.json") is None


@pytest.mark.parametrize("kind", FORMER)
def test_a_former_design_is_named_and_the_run_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    values, said = FORMER[kind]
    directory = write_report(tmp_path / "run", status="completed")
    write(directory, "certificate.json", certificate().model_dump(mode="json") | values)
    record = AutoRecord(name="r", recipe={}, status="completed").model_dump(mode="json")
    write(directory, "auto.json", record | values)
    assert run(["verify", str(directory), "--certificate"]) == NO_VERDICT
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: the search in '{directory}' was ")
    assert said in line
    assert line.endswith("neither continued nor tested again, as this version has no such design")
    assert run(["report", str(directory)]) == OK
    told = " ".join(capsys.readouterr().err.split())
    assert "certificate.json is left out: the search was " in told
    assert said in told
    assert run(["list", str(tmp_path)]) == OK
    assert "certificate of a former design" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    "values",
    [{"rows": {"half 1": ROW_SET}}, {"basis": "both"}, {"halves": FORMER["halves"][0]["halves"]}],
)
def test_such_a_search_is_not_continued(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], values: dict[str, Any]
) -> None:
    """Also where the tool had chosen the design by itself, so that no recipe tells."""
    recipe, out = auto_recipe(tmp_path), tmp_path / "out"
    out.mkdir()
    record = AutoRecord(name="r", recipe={}, status="interrupted").model_dump(mode="json")
    file = write(out, "auto.json", record | values)
    before = file.read_bytes()
    assert read_auto(out) is not None
    assert run(["auto", str(recipe)]) == NO_VERDICT
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith(f"error: the search in '{out}' was ")
    assert [path.name for path in out.iterdir()] == ["auto.json"]
    assert file.read_bytes() == before
    assert run(["list", str(tmp_path), "--json"]) == OK
    (entry,) = json.loads(capsys.readouterr().out)
    assert (entry["kind"], entry["resumable"]) == ("auto", False)
