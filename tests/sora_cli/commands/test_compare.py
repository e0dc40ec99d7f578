"""`sora compare` as a person starts it; what it imports and how long it takes."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from sora_cli.app import run
from tests.golden import told
from tests.helpers_errors import refused
from tests.helpers_reports import KINDS, write_report, write_study
from tests.shared_files import ROOT

_PROGRAM = """
import json, sys
from sora_cli.app import run
code = run(sys.argv[1:])
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})), file=sys.stderr)
sys.exit(code)
"""
Output = pytest.CaptureFixture[str]


def _children() -> float:
    """Seconds of computing by processes that have ended: other programs do not count."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_study(tmp_path_factory.mktemp("study"))


def test_a_table(study: Path, capsys: Output) -> None:
    assert run(["compare", str(study)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    told(out)


def test_what_is_read_is_not_overwritten(study: Path, tmp_path: Path, capsys: Output) -> None:
    report = next(study.rglob("report.json"))
    lines = tmp_path / "runs.jsonl"
    assert run(["compare", str(study), "-o", str(lines)]) == 0
    for words in (
        [str(study), "-o", str(report)],
        [str(report.parent), "--format", "jsonl", "-o", str(report)],
        [str(lines), "-o", str(lines)],
        [str(study), "--plot", str(report)],
    ):
        before = report.read_bytes(), lines.read_bytes()
        refused(capsys, "compare", *words, "--force")
        assert (report.read_bytes(), lines.read_bytes()) == before


def test_data_goes_to_stdout_and_talk_to_stderr(
    study: Path, tmp_path: Path, capsys: Output
) -> None:
    write_report(tmp_path / "cut", status="interrupted")
    write_report(tmp_path / "twice", method="sora", settings={"method.threshold": 1e-3})
    other = {"data": {"fingerprints": {"train": "other"}}}
    write_report(tmp_path / "other", method="adalora", more=other)
    assert run(["compare", str(study), str(tmp_path), "--json"]) == 0
    out, err = capsys.readouterr()
    assert len(json.loads(out)["rows"]) == 13
    told(err)


def test_differences_to_a_baseline(study: Path, capsys: Output) -> None:
    assert run(["compare", str(study), "--baseline", "lora r=8"]) == 0
    told(capsys.readouterr().out)


def test_at_equal_size(study: Path, tmp_path: Path, capsys: Output) -> None:
    words = ["compare", str(study), "--baseline", "lora r=8", "--budgets", "50,25"]
    assert run([*words, "--ranks", "--plot", str(tmp_path / "a.png")]) == 0
    told(capsys.readouterr().out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a-ranks.png", "a.png"]


def test_another_metric(study: Path, capsys: Output) -> None:
    assert run(["compare", str(study), "--metric", "loss"]) == 0
    told(capsys.readouterr().out)


def test_a_file_instead(study: Path, tmp_path: Path, capsys: Output) -> None:
    for name in ("a.md", "a.csv", "a.tex", "a.json", "a.txt"):
        assert run(["compare", str(study), "-o", str(tmp_path / name)]) == 0
        out, err = capsys.readouterr()
        assert out == ""
        told(err)
    assert json.loads((tmp_path / "a.json").read_text())["schema_version"] == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "a.csv", "a.json", "a.md", "a.tex", "a.txt",
    ]  # fmt: skip


def test_hundreds_of_runs_take_seconds_and_nothing_heavy(tmp_path: Path) -> None:
    for group in range(10):
        first = write_report(
            tmp_path / f"g{group}-s0", method="sora", layers=12, steps=2000,
            ranks=dict.fromkeys(KINDS, group % 8), settings={"method.threshold": group * 1e-4},
        )  # fmt: skip
        text = (first / "report.json").read_text()
        for seed in range(1, 50):
            other = tmp_path / f"g{group}-s{seed}"
            other.mkdir()
            (other / "report.json").write_text(text.replace('"seed": 0', f'"seed": {seed}'))
    start = _children()
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, "compare", str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    spent = _children() - start
    assert done.returncode == 0, done.stderr
    assert sum(" 50 " in line for line in done.stdout.splitlines()) == 10
    heavy = {"torch", "transformers", "datasets", "matplotlib", "numpy", "scipy", "pandas"}
    assert not set(json.loads(done.stderr.splitlines()[-1])) & heavy
    assert spent < 5, f"500 runs took {spent:.1f} s"
