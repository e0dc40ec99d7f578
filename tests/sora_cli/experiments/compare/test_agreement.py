"""Where ranks are, and who agrees on it."""

from __future__ import annotations

from pathlib import Path

import pytest

from sora_cli.app import run
from sora_cli.experiments.compare.agreement import rank_agreement
from sora_cli.experiments.compare.finding import find_runs
from sora_cli.experiments.compare.grouping import group_runs
from sora_cli.report import FILE_NAME, Ranks, Start, load_report
from tests.helpers_reports import KINDS, write_report

Output = pytest.CaptureFixture[str]

UP = {kind: i for i, kind in enumerate(KINDS)}
DOWN = {kind: 5 - i for i, kind in enumerate(KINDS)}


def write(folder: Path) -> Path:
    """Two seeds that do not agree, and two tasks that do."""
    for task in ("rte", "cola"):
        for seed, ranks in enumerate((UP, DOWN)):
            write_report(folder / f"{task}{seed}", task=task, method="sora", seed=seed, ranks=ranks)
        write_report(folder / f"{task}-lora", task=task, method="lora")
    return folder


def test_agreement(tmp_path: Path) -> None:
    groups = group_runs(find_runs([write(tmp_path)]).runs).groups
    (agreement,) = rank_agreement(groups)
    assert agreement.label == "sora"
    assert (agreement.seed_pairs, agreement.task_pairs) == (2, 2)
    assert agreement.seeds == pytest.approx(-1)
    assert agreement.tasks == pytest.approx(1)


def test_ranks_that_are_all_alike_have_no_correlation(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_report(tmp_path / f"{seed}", method="sora", seed=seed, ranks=3)
    (agreement,) = rank_agreement(group_runs(find_runs([tmp_path]).runs).groups)
    assert (agreement.seeds, agreement.seed_pairs) == (None, 0)


def pruned(folder: Path, ranks: dict[str, int], seed: int) -> None:
    """A run that began with a pruned adapter and lost nothing more."""
    directory = write_report(folder / f"{seed}", seed=seed, ranks=ranks)
    report = load_report(directory / FILE_NAME)
    stored = {path: Ranks(start=8, end=rank.end) for path, rank in report.ranks.items()}
    report.start = Start(directory=f"/runs/lora-s{seed}", digest="", ranks=stored)
    for rank in report.ranks.values():
        rank.start = rank.end
    (directory / FILE_NAME).write_text(report.model_dump_json())


def test_ranks_that_were_cut_before_the_first_step(tmp_path: Path, capsys: Output) -> None:
    pruned(tmp_path, UP, 0)
    pruned(tmp_path, UP | {"output.dense": 0}, 1)
    file = tmp_path / "all.jsonl"
    assert run(["compare", str(tmp_path), "-o", str(file)]) == 0
    assert "/runs/" not in file.read_text()
    for place in (tmp_path, file):
        (agreement,) = rank_agreement(group_runs(find_runs([place]).runs).groups)
        assert agreement.seed_pairs == 1
        assert agreement.seeds == pytest.approx(5 / (17.5 * 40 / 3) ** 0.5)  # 012345 and 012340
        capsys.readouterr()
        assert run(["compare", str(place), "--ranks"]) == 0
        row = next(line for line in capsys.readouterr().out.splitlines() if "rte: lora" in line)
        assert row.split()[2:] == ["0%", "12%", "25%", "38%", "50%", "31%"]


def test_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["compare", str(write(tmp_path)), "--ranks"]) == 0
    out = capsys.readouterr().out
    assert "two seeds, one task" in out
    row = next(line for line in out.splitlines() if line.strip().startswith("rte: sora"))
    assert row.split()[2:] == ["31%"] * 6
    assert "rte: lora" not in out


def test_without_any_ranks(tmp_path: Path) -> None:
    write_report(tmp_path / "a", method="lora")
    assert run(["compare", str(tmp_path), "--ranks"]) == 0
