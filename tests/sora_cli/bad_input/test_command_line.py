"""Command lines that are wrong, with words of the error; files in the way; and real processes."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from sora_cli.app import run
from sora_cli.report import FILE_NAME
from tests.sora_cli.bad_input.runner import (
    FINISHED,
    TRAIN,
    Case,
    bad,
    check_process,
    lay_out,
    recipe,
)

LINES = Path(__file__).with_name("command_lines.txt").read_text("utf-8").splitlines()
"""Mistakes on the desk, a command line each."""
RUN = {f"out/{FILE_NAME}": FINISHED}
REPORT = f"models/{FILE_NAME}"
FILES: dict[str, Case] = {
    "code that fails": bad(*TRAIN, "--code", "x.py", **{"x.py": "\n1 / 0\n"}),
    "code without a method": bad(*TRAIN, "--code", "x.py", **{"x.py": "x = 1\n"}),
    "a result with foreign files": bad(*TRAIN, "--force", **RUN | {"out/checkpoints/x.txt": "x",
        "out/adapter/sora.json": "{}", "out/adapter/thesis.txt": "x"}),
    "a result of nobody": bad(*TRAIN, "--force", **{"out/adapter/thesis.txt": "x"}),
    "a checkpoint that is none": bad(*TRAIN, "--force",
        **RUN | {"out/checkpoints/step-000001/x.txt": "x"}),
    "a report of another tool": bad(*TRAIN, **{f"out/{FILE_NAME}": "[]"}),
    "a stage that is none": bad("path", "p.yaml", **{"out/stages/01/adapter/thesis.txt": "x"}),
    "a damaged path": bad("path", "p.yaml", **{"out/path.json": '{"schema_version": 1, "na'}),
    "a damaged path to pick from": bad("pick", "out", "--keep", "0.9",
        **{"out/path.json": '{"schema_version": 1, "na'}),
    "a record of another tool": bad("sweep", "s.yaml", "output.dir=out",
        **{"out/sweep.json": "[]"}),
    "predictions over a report": bad("eval", "models/adapter", "-r", "r.yaml", "--force",
        "--predictions", REPORT, **{REPORT: FINISHED}),
    "predictions over a history": bad("eval", "models/adapter", "-r", "r.yaml", "--force",
        "--predictions", "models/history.json", **{REPORT: FINISHED, "models/history.json": "[]"}),
    "exported over a link": bad("export", "models/adapter", "-o", "link", "--force",
        link=lambda path: path.symlink_to("models/adapter")),
    "pruned over more than an adapter": bad("prune", "models/adapter", "-o", "new", "--force",
        **{"new/adapter_config.json": "{}", "new/README.md": "x"}),
    "merged over more than a model": bad("merge", "models/adapter", "-o", "new", "--force",
        **{"new/config.json": "{}", "new/package.json": "{}"}),
    "a damaged report": bad("report", "out", **{f"out/{FILE_NAME}": "{"}),
    "a report of other things": bad("report", "out", **{f"out/{FILE_NAME}": '{"name": 3}'}),
    "a damaged certificate": bad("report", "out", **RUN | {"out/certificate.json": "{}"}),
    "a page over a thesis": bad("report", "out", **RUN | {"out/report.html": "x"}),
    "predictions that are none": bad("report", "out", "--predictions", "p.jsonl",
        **RUN | {"p.jsonl": "{"}),
    "a page over predictions": bad("report", "out", "--predictions", "p.jsonl", "-o", "p.jsonl",
        "--force", **RUN | {"p.jsonl": "{}\n"}),
}  # fmt: skip
PROCESSES = {
    "typo": bad(r=recipe("training", "epochz: 3")),
    "tag": bad(r=recipe("output", "dir: !!python/object/apply:os.system ['touch x']")),
    "rows": bad(**{"train.jsonl": '{"sentence1": "BROKEN"\n'}),
    "labels": bad(**{"validation.jsonl": '{"sentence1": "a", "sentence2": "b", "label": 7}\n'}),
    "model": bad(*TRAIN, "model.path=./d"),
    "merge": bad("merge", "nowhere", "-o", "new"),
}  # fmt: skip


@pytest.mark.parametrize("line", LINES, ids=LINES)
def test_bad_line(line: str, checked: Callable[[Case], object]) -> None:
    checked(bad(*shlex.split(line)))


@pytest.mark.parametrize("case", FILES.values(), ids=FILES)
def test_bad_files(case: Case, checked: Callable[[Case], object]) -> None:
    checked(case)


@pytest.mark.parametrize("case", PROCESSES.values(), ids=PROCESSES)
def test_in_a_process(case: Case, tmp_path: Path, desk: Path) -> None:
    check_process(case, tmp_path, desk)


def test_debug_shows_where_a_mistake_was_noticed(
    tmp_path: Path,
    desk: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    lay_out({"r.yaml": recipe("training", "epochz: 3")}, tmp_path, desk)
    monkeypatch.chdir(tmp_path)
    assert run(["--debug", *TRAIN]) == 2
    shown = capsys.readouterr().err
    assert "Traceback (most recent call last)" in shown
    assert "error: unknown key 'epochz'" in shown


def test_a_fault_of_the_program_is_called_one(
    tmp_path: Path,
    desk: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Deep inside, something unforeseen: told as such, with the traceback in a file."""

    def fault(*_: object, **__: object) -> None:
        raise ZeroDivisionError("of all things")

    lay_out({}, tmp_path, desk)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr("sora_cli.tasks.sequence.tokenise", fault)
    assert run(TRAIN) == 1
    shown = capsys.readouterr().err
    error = shown[shown.index("error: ") :].splitlines()
    assert error[0] == "error: internal error: ZeroDivisionError: of all things"
    assert "Traceback" not in shown
    log = Path(error[1].split()[-1])
    assert log.parent == tmp_path
    text = log.read_text(encoding="utf-8")
    assert "Traceback (most recent call last)" in text
    assert "in fault" in text
    assert "report it" in error[2]
