"""What docs/results says: its commands print its tables from docs/results/runs.jsonl."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from sora_cli.app import run
from sora_cli.experiments.compare.finding import find_runs
from tests.shared_files import ROOT

RESULTS = ROOT / "docs" / "results"
RUNS = "docs/results/runs.jsonl"
FAMILIES = {
    "question-answering": "passages",
    "token-classification": "entities",
    "multiple-choice": "endings",
    "seq2seq": "numbers",
    "image-classification": "digits",
    "image-text": "captions",
}
Output = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def commands(page: str) -> list[list[str]]:
    """The comparisons that a page tells people to type, without pictures, which take long."""
    text = (RESULTS / page).read_text(encoding="utf-8").replace("\\\n", " ")
    lines = re.findall(r"^sora (compare '?docs.*)$", text, flags=re.MULTILINE)
    return [shlex.split(re.sub(r"--plot \S+", "", line)) for line in lines]


def printed(words: Sequence[str], capsys: Output) -> str:
    assert run(list(words)) == 0
    return capsys.readouterr().out


def rows(words: Sequence[str], capsys: Output) -> dict[str, dict[str, Any]]:
    """Label -> row, of the means over tasks where there are any."""
    data = json.loads(printed([*words, "--format", "json"], capsys))
    return {row["label"]: row for row in data["rows"]}


def cells(page: str, first: str) -> list[str]:
    """The cells of the one row of a page that begins so."""
    lines = (RESULTS / page).read_text(encoding="utf-8").splitlines()
    (line,) = [line for line in lines if line.startswith(f"| {first} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


@pytest.mark.parametrize(
    ("page", "words"),
    [
        ("main.md", [f"{RUNS}/cpu-main", "--baseline", "lora-r8"]),
        ("ablation.md", [f"{RUNS}/cpu-ablation", f"{RUNS}/cpu-main/stsb-sora-*",
                         "--baseline", "sora-70"]),
        ("tune.md", [f"{RUNS}/cpu-tune", f"{RUNS}/cpu-tune-adalora", "--selection"]),
    ],
)  # fmt: skip
def test_whole_tables(page: str, words: list[str], tmp_path: Path) -> None:
    assert any(set(words) <= set(command) for command in commands("README.md"))
    assert run(["compare", *words, "-o", str(tmp_path / page)]) == 0
    assert (tmp_path / page).read_bytes() == (RESULTS / page).read_bytes()


def test_numbers_of_the_summary(capsys: Output) -> None:
    """Every mean and every difference of README.md is printed by one of its commands."""
    found = commands("README.md")
    assert len(found) == 4
    found.append(["compare", f"{RUNS}/cpu-main", "--baseline", "adalora"])
    told = "".join(printed([*words, "--format", "markdown"], capsys) for words in found)
    lines = (RESULTS / "README.md").read_text(encoding="utf-8").splitlines()
    table = "\n".join(line for line in lines if line.startswith("|") and "/ floor" not in line)
    numbers = re.findall(r"-?\d+\.\d\d ± \d+\.\d\d|[+-]\d+\.\d\d \[[^]]+\]", table)
    assert len(numbers) > 60
    assert not [number for number in numbers if number not in told]


def spread(row: dict[str, Any]) -> str:
    """Mean and deviation with one decimal, rounded from the two that the table has."""
    two = [Decimal(f"{100 * row[key]:.2f}") for key in ("metric", "std")]
    return " ± ".join(str(value.quantize(Decimal("0.1"), ROUND_HALF_UP)) for value in two)


@pytest.mark.parametrize("family", FAMILIES)
def test_numbers_of_families(family: str, capsys: Output) -> None:
    found = rows(commands("families.md")[0], capsys)
    lines = (RESULTS / "families.md").read_text(encoding="utf-8").splitlines()
    first, second = [line.strip("|").split("|") for line in lines if line.startswith(f"| {family}")]
    scores, costs = [[cell.strip() for cell in row] for row in (first, second)]
    name = FAMILIES[family]
    *methods, kept = scores[4:]
    for method, score, cost in zip(("lora", "adalora", "sora"), methods, costs[1:], strict=True):
        row = found[f"{name}-{method}"]
        assert score == spread(row)
        assert cost == f"{row['training_seconds']:.0f} s, {row['parameters']:,.0f}"
    assert kept == f"{found[f'{name}-sora']['components']:.0%}"
    if "±" in scores[3]:  # a trained head; otherwise the model as it is, which is no run
        assert scores[3] == spread(found[f"{name}-head"])


def test_numbers_of_instructions(capsys: Output) -> None:
    found = rows(commands("families.md")[1], capsys)
    for label, title in {"lora": "LoRA, rate 3e-4", "adalora": "AdaLoRA, rate 2e-3",
                         "sora": "SoRA, rate 5e-4"}.items():  # fmt: skip
        told, row = cells("families.md", title), found[label]
        assert told[1].split()[0] == f"{row['metric']:.3f}"
        assert told[3] == f"{row['parameters']:,.0f}"
        assert told[-1] == f"{row['training_seconds']:.0f}"


def test_all_runs_are_there_and_no_machine_is_told_of() -> None:
    assert len(find_runs([Path(RUNS)]).runs) == 245
    text = (ROOT / RUNS).read_text(encoding="utf-8")
    assert len(text.splitlines()) == 245
    assert not re.findall(r"/(?:tmp|work|home|root)/", text)


@pytest.mark.parametrize(
    ("section", "sweeps"),
    [
        ("Short runs", ("cpu-arena", "cpu-arena-nested")),
        ("Long runs", ("cpu-arena-long",)),
    ],
)
def test_the_arena_prints_its_runs(section: str, sweeps: tuple[str, ...]) -> None:
    """Each row: the share, the mean of the tasks, its difference to the baseline, the tasks."""
    tasks = ("stsb", "sst2", "cola")
    scores: dict[str, dict[str, dict[str, float]]] = {}  # label -> task -> seed
    sizes: dict[str, list[int]] = {}
    for line in (RESULTS / "arena.jsonl").read_text(encoding="utf-8").splitlines():
        run_ = json.loads(line)
        if Path(run_["directory"]).parent.name not in sweeps:
            continue
        name, _, seed = Path(run_["directory"]).name.rpartition("-")
        task, _, label = name.partition("-")
        score = run_["metrics"]["validation"][run_["main_metric"]]
        scores.setdefault(label, {}).setdefault(task, {})[seed] = 100 * score
        sizes.setdefault(label, []).append(run_["parameters"]["adapter_end"])
    base, shown = scores["lora-r8"], []
    page = (RESULTS / "arena.md").read_text(encoding="utf-8")
    text = page.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    for row in re.findall(r"^\| [\d.]+ % \| `.*$", text, flags=re.MULTILINE):
        share, name, mean, difference, *each = (cell.strip() for cell in row.strip("|").split("|"))
        of = scores[label := name.strip("`")]
        shown.append(label)
        assert share == f"{100 * fmean(sizes[label]) / fmean(sizes['lora-r8']):.1f} %"
        assert each == [f"{fmean(of[task].values()):.2f}" for task in tasks]
        assert mean == f"{fmean(fmean(of[task].values()) for task in tasks):.2f}"
        apart = [fmean(v - base[task][s] for s, v in of[task].items()) for task in tasks]
        assert difference == ("" if label == "lora-r8" else f"{fmean(apart):+.2f}")
    assert sorted(shown) == sorted(scores)
