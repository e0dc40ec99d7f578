"""What docs/results says: its commands print its tables from docs/results/runs.jsonl."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
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


def test_numbers_of_precision(capsys: Output) -> None:
    """Each row: a task, both precisions, the mean difference, and that of each seed."""
    scores: dict[str, dict[str, float]] = {}
    for line in (RESULTS / "precision.jsonl").read_text(encoding="utf-8").splitlines():
        report = json.loads(line)
        task, _, precision, seed = Path(report["directory"]).name.split("-")
        assert report["recipe"]["training"]["precision"] == precision
        (found,) = report["metrics"].values()
        scores.setdefault(f"{task} {precision}", {})[seed] = found[report["main_metric"]]
    (words,) = commands("precision.md")
    rows = json.loads(printed([*words, "--format", "json"], capsys))["rows"]
    by = {(row["task"], row["label"]): row for row in rows}
    tasks = ("stsb", "sst2", "mrpc")
    for task in tasks:
        full, half = (by[task, f"lora-{precision}"] for precision in ("fp32", "bf16"))
        apart = [
            100 * (scores[f"{task} bf16"][seed] - value)
            for seed, value in sorted(scores[f"{task} fp32"].items())
        ]
        shown = [f"{100 * row['metric']:.2f} ± {100 * row['std']:.2f}" for row in (full, half)]
        assert cells("precision.md", task)[1:] == [
            *shown, points(half), ", ".join(f"{value:+.2f}" for value in apart)
        ]  # fmt: skip
    assert {task for task, _ in by} == {*tasks, None}


ARENA = "docs/results/arena.jsonl"
GLUE = ("stsb", "sst2", "cola")


def section(page: str, title: str) -> str:
    """The text of a page from one heading of the second level to the next."""
    text = (RESULTS / page).read_text(encoding="utf-8")
    return text.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def points(row: dict[str, Any]) -> str:
    """A difference to the baseline, of several runs of a task with its interval."""
    if row["difference_low"] is None:
        return f"{100 * row['difference']:+.2f}"
    low, high = (f"{100 * row[f'difference_{end}']:+.2f}" for end in ("low", "high"))
    return f"{100 * row['difference']:+.2f} [{low}, {high}]"


Found = dict[str, dict[str | None, dict[str, Any]]]
"""Label -> task -> row; None: the mean over tasks."""


def by_label(words: Sequence[str], capsys: Output) -> Found:
    """What a comparison prints."""
    found: Found = {}
    for row in json.loads(printed([*words, "--format", "json"], capsys))["rows"]:
        found.setdefault(row["label"], {})[row["task"]] = row
    return found


def told_beside_lora(text: str, found: Found, tasks: Sequence[str]) -> list[str]:
    """Hold a table's rows against what is printed; return their labels.

    Each row: share, label, runs, mean difference to LoRA r 8, and that of each task.
    """
    whole, shown = found["lora-r8"], []
    for line in re.findall(r"^\| [\d.]+ % \| `.*$", text, flags=re.MULTILINE):
        share, name, runs, apart, *each = (cell.strip() for cell in line.strip("|").split("|"))
        of = found[label := name.strip("`")]
        shown.append(label)
        assert share == f"{100 * of[None]['parameters'] / whole[None]['parameters']:.1f} %"
        assert (runs, apart) == (str(of[None]["n"]), points(of[None]))
        assert each == [f"{100 * of[task]['difference']:+.2f}" for task in tasks]
    return shown


@pytest.mark.parametrize(
    ("title", "sweeps", "tasks"),
    [
        ("Short runs", ["cpu-arena", "cpu-arena-seeds"], GLUE),
        ("Long runs", ["cpu-arena-long"], GLUE),
        ("MRPC and RTE", ["cpu-arena-rows/mrpc-*"], ["mrpc"]),
    ],
)
def test_the_arena_prints_its_runs(
    title: str, sweeps: list[str], tasks: Sequence[str], capsys: Output
) -> None:
    files = [f"{ARENA}/{name}" for name in sweeps]
    found = by_label(["compare", *files, "--baseline", "lora-r8"], capsys)
    for of in found.values():
        of.setdefault(None, of[tasks[0]])  # of one task there is no mean
    shown = told_beside_lora(section("arena.md", title), found, tasks)
    assert sorted([*shown, "lora-r8"]) == sorted(found)


def test_alphas_page_prints_the_arenas_runs(capsys: Output) -> None:
    """Its tables of short and of long runs, like the arena's, and the differences to the cut."""
    text = (RESULTS / "alpha.md").read_text(encoding="utf-8")
    arena = commands("alpha.md")[2:]
    for words, title, size in zip(arena, ("Short runs:", "Long runs:"), (6, 4), strict=True):
        table = text.partition(title)[2].split("\n\n")[1]
        assert len(told_beside_lora(table, by_label(words, capsys), GLUE)) == size
        words[words.index("lora-r8")] = "cut-15"
        by = by_label(words, capsys)["lora-r1-alpha4"]
        told = [points(by[None]), *(f"{100 * by[task]['difference']:+.2f}" for task in GLUE)]
        plain = re.sub(r"\s+", " ", text.partition("\n## ")[0])
        for figure in [told[0].split()[0].lstrip("+"), told[0].partition(" ")[2], *told[1:]]:
            assert figure in plain


def test_alphas_page_prints_the_runs_of_healing(capsys: Output) -> None:
    words, text = commands("alpha.md")[0], section("alpha.md", "Healing after a cut")
    by = by_label(words, capsys)
    found = {label: f"{100 * of[None]['metric']:.2f}" for label, of in by.items()}
    assert f"itself has {found.pop('lora-r8')} there" in text.replace("\n", " ")
    table = re.findall(r"^\| (\d+) \| (.*) \|$", text, flags=re.MULTILINE)
    assert found == {
        f"alpha{alpha}-{rate}": score
        for alpha, scores in table
        for rate, score in zip(("5e-4", "1.5e-3", "4.5e-3"), scores.split(" | "), strict=True)
    }


def test_alphas_page_prints_the_runs_with_another_rate_of_the_head(capsys: Output) -> None:
    """Each row: a label, its score on the rows that choose, and the difference to alpha 4."""
    found, text = by_label(commands("alpha.md")[1], capsys), section("alpha.md", "Is it the head?")
    table = re.findall(r"^\| `(\S+)` \| (\S+) \|(.*)\|$", text, flags=re.MULTILINE)
    assert len(table) == len(found) == 6
    for label, score, apart in table:
        of = found[label]
        assert score == f"{100 * of[None]['metric']:.2f}"
        assert apart.strip() == ("" if label == "r1-alpha4" else points(of[None]))


def test_the_arenas_other_tasks_are_what_its_command_prints(capsys: Output) -> None:
    """Each row: smallest and largest share, label, mean difference to LoRA r 8, and each task's."""
    tasks = ("passages", "entities", "endings", "numbers", "digits", "captions")
    words = ["compare", f"{ARENA}/cpu-arena-families", "--baseline", "lora-r8", "--format", "json"]
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for row in json.loads(printed(words, capsys))["rows"]:
        found.setdefault(row["label"], {})[str(row["task"]).rpartition("/")[2]] = row
    whole, shown = found.pop("lora-r8"), {}
    text = section("arena.md", "Other kinds of tasks")
    for line in re.findall(r"^\| \d+ to \d+ % \| `.*$", text, flags=re.MULTILINE):
        share, name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        shown[name.strip("`")] = (share, cells)
    assert shown.keys() == found.keys()
    for label, (share, cells) in shown.items():
        of = found[label]
        shares = [100 * of[task]["parameters"] / whole[task]["parameters"] for task in tasks]
        assert share == f"{min(shares):.0f} to {max(shares):.0f} %"
        apart = [100 * of[task]["difference"] for task in tasks]
        assert cells == [f"{value:+.1f}" for value in (sum(apart) / len(apart), *apart)]


def test_the_arenas_goals_are_what_its_commands_print(capsys: Output) -> None:
    budgets = [words for words in commands("arena.md") if "--budgets" in words]
    told = "".join(printed([*words, "--format", "markdown"], capsys) for words in budgets)
    numbers = re.findall(r"[+-]\d+\.\d\d \[[^]]+\]", section("arena.md", "Goals"))
    assert len(numbers) >= 3
    assert not [number for number in numbers if number not in told]


def test_the_language_models_table_is_what_its_command_prints(capsys: Output) -> None:
    text = section("arena.md", "A language model")
    words = next(words for words in commands("arena.md") if "cpu-arena-instruct" in words[1])
    told = printed([*words, "--format", "markdown"], capsys)
    rows = re.findall(r"^\| ([\d.]+ %) \| `(.*)` \| ([\d.]+) \| (.*) \|$", text, flags=re.MULTILINE)
    assert len(rows) == 5
    for share, label, loss, apart in rows:
        (line,) = {line for line in told.splitlines() if line.startswith(f"| {label} |")}
        assert all(cell in line for cell in (share.replace(" ", ""), loss, apart)), line


def retrieval_rows(title: str) -> list[tuple[str, list[str]]]:
    """The adapters of a table, each with its cells."""
    text = section("retrieval.md", title)
    found = re.findall(r"^\| `([^`]+)` \| (.*) \|$", text, re.MULTILINE)
    return [(name, [cell.strip() for cell in cells.split("|")]) for name, cells in found]


@pytest.mark.parametrize(
    ("title", "place", "number"), [("Sizes", 0, 14), ("Long runs", 2, 14), ("A second task", 3, 14)]
)
def test_the_smallest_retrieval_adapters_are_what_the_command_prints(
    title: str, place: int, number: int, capsys: Output
) -> None:
    """Each row ends with score and difference, of both sides and of queries alone."""
    words = commands("retrieval.md")[place]
    found = rows(words, capsys)
    alone = rows([*words[:2], "--baseline", "query-lora-r8"], capsys)
    lines = retrieval_rows(title)
    assert len(lines) == number
    for name, cells in lines:
        score, apart, query_score, query_apart = cells[-4:]
        assert score == f"{100 * found[name]['metric']:.2f}"
        assert apart == ("" if name == "lora-r8" else points(found[name]))
        if name != "full":
            of = alone[f"query-{name}"]
            assert query_score == f"{100 * of['metric']:.2f}"
            assert query_apart == ("" if name == "lora-r8" else points(of))


def test_the_bytes_of_retrieval_adapters_are_what_the_command_prints(capsys: Output) -> None:
    told = printed([*commands("retrieval.md")[1], "--format", "markdown"], capsys)
    for name, (n_bytes, share, *_) in retrieval_rows("Sizes"):
        if name != "full":
            assert f"| {name} | 2 | {float(share.rstrip(' %')):g}% | {n_bytes} |" in told


def test_the_scores_of_a_cut_are_what_the_commands_print(capsys: Output) -> None:
    """Short runs: a row a score, its mean difference to LoRA r 8 at each size, or at 15 % by task.

    Then that to the singular values with more seeds, and both of long runs.
    """
    short, seeds, long = (by_label(words, capsys) for words in commands("scores.md"))

    def cells(title: str) -> list[tuple[str, list[str]]]:
        lines = re.findall(r"^\| `(\w+)` \| (.*) \|$", section("scores.md", title), re.MULTILINE)
        return [(name, line.split(" | ")) for name, line in lines]

    def by_task(of: dict[str | None, dict[str, Any]]) -> list[str]:
        return [f"{100 * of[task]['difference']:+.2f}" for task in GLUE]

    lines = cells("Short runs")
    assert len(lines) == 2 * 4 + 1
    for name, found in lines[:4]:
        assert found == [points(short[f"{name}-{size}"][None]) for size in (30, 15, 8, 4)]
    for name, found in lines[4:8]:
        assert found == by_task(short[f"{name}-15"])
    (name, found), of = lines[8], seeds["activation-15"]
    assert (name, found) == ("activation", [str(of[None]["n"]), points(of[None]), *by_task(of)])
    lines = cells("Long runs")
    assert len(lines) == 4
    for name, found in lines:
        sizes = [long[f"{name}-{size}"] for size in (15, 8) if f"{name}-{size}" in long]
        told = [cell for of in sizes for cell in (points(of[None]), *by_task(of))]
        assert [cell for cell in found if cell.strip()] == told
