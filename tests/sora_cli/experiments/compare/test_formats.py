"""A comparison as Markdown, CSV, LaTeX, JSON and for the terminal, hostile labels included."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import pytest

from sora_cli.core.errors import SoraError
from sora_cli.experiments.compare.formats import FORMATS, format_of, render
from sora_cli.experiments.compare.grouping import group_runs
from sora_cli.experiments.compare.runs import Run
from sora_cli.experiments.compare.table import Tables, comparison_tables
from tests.helpers_reports import report_of

HOSTILE = "a|b & 50% of_$x$ #1 {y} [bold]z[/bold] <i> \\n \x1b[31m"


def table_of(*about: dict[str, Any], **options: Any) -> Tables:
    runs = [Run.of(Path(f"runs/{i}"), report_of(**words)) for i, words in enumerate(about)]
    return comparison_tables(group_runs(runs).groups, **options)


@pytest.fixture(scope="module")
def table() -> Tables:
    about = [
        {"task": task, "method": method, "seed": seed, "metric": 0.5 + 0.1 * seed}
        for task in ("rte", "cola")
        for method in ("lora", "sora")
        for seed in (0, 1)
    ]
    return table_of(*about, baseline="lora")


@pytest.mark.parametrize(
    ("file", "asked", "form"),
    [(None, None, "table"), (None, "csv", "csv"), ("a.md", None, "markdown"),
     ("a.tex", None, "latex"), ("a.json", None, "json"), ("a.csv", None, "csv"),
     ("a.txt", None, "table"), ("a.csv", "json", "json"), ("a.dat", "csv", "csv")],
)  # fmt: skip
def test_which_format(file: str | None, asked: str | None, form: str) -> None:
    assert format_of(None if file is None else Path(file), asked) == form


def test_no_such_format() -> None:
    with pytest.raises(SoraError, match="no format 'yaml'"):
        format_of(None, "yaml")
    with pytest.raises(SoraError, match="does not name a format"):
        format_of(Path("a.dat"), None)


def test_json_has_the_documented_shape(table: Tables) -> None:
    data = json.loads(render(table, "json"))
    assert list(data) == ["schema_version", "baseline", "columns", "rows", "captions", "footnotes"]
    assert data["schema_version"] == 1
    assert data["baseline"] == "lora"
    assert all(row.keys() == data["columns"].keys() for row in data["rows"])
    assert [(row["task"], row["label"]) for row in data["rows"]] == [
        (task, label) for task in ("rte", "cola", None) for label in ("lora", "sora")
    ]
    first = data["rows"][0]
    assert first["metric"] == pytest.approx(0.55)
    assert first["seeds"] == [0, 1]
    assert [entry["task"] for entry in data["captions"]] == ["rte", "cola", None]


def test_csv_says_the_same(table: Tables) -> None:
    data = json.loads(render(table, "json"))
    rows = list(csv.DictReader(io.StringIO(render(table, "csv"))))
    assert [row["label"] for row in rows] == [row["label"] for row in data["rows"]]
    for row, other in zip(rows, data["rows"], strict=True):
        assert float(row["metric"]) == other["metric"]
        assert row["std"] == ("" if other["std"] is None else str(other["std"]))
    assert rows[0]["values"] == "0.5 0.6"
    assert rows[-1]["task"] == ""


def test_what_is_no_number_is_null() -> None:
    table = table_of({"metric": math.nan})
    row = json.loads(render(table, "json"), parse_constant=pytest.fail)["rows"][0]
    assert row["metric"] is None
    assert row["values"] == [None]
    assert "nan" in render(table, "markdown")
    assert "nan" not in render(table, "csv")


def test_markdown_is_a_table_per_task(table: Tables) -> None:
    lines = render(table, "markdown").splitlines()
    assert lines[0] == "**rte: accuracy x 100 on validation**"
    assert lines[2].startswith("| method | n | mean ± std | best | median | minus lora |")
    assert lines[3].startswith("| --- | ---: |")
    assert lines[4].startswith("| lora | 2 | 55.00 ± 7.07 | 60.00 | 55.00 |")
    assert sum(line.startswith("**") for line in lines) == 3
    widths = {line.count("|") for line in lines if line.startswith("|")}
    assert widths == {len(table.parts[None].shown_columns) + 1}


def test_latex_is_one_table(table: Tables) -> None:
    text = render(table, "latex")
    assert text.count(r"\toprule") == text.count(r"\bottomrule") == 1
    assert text.count(r"\midrule") == 3
    assert r"{}lora & 2 & 55.00 $\pm$ 7.07" in text
    assert r"\textit{cola: matthews\_correlation x 100 on validation}" in text
    rows = [line for line in text.splitlines() if line.startswith("{}")]
    assert {line.count(" & ") for line in rows} == {len(table.parts[None].shown_columns) - 1}


@pytest.mark.parametrize("form", FORMATS)
def test_labels_that_others_wrote(form: str) -> None:
    text = render(table_of({"label": HOSTILE}, {"method": "sora"}), form)
    assert "\x1b" not in text
    if form == "table":
        assert r"a|b & 50% of_$x$ #1 {y} [bold]z[/bold] <i> \n \x1b[31m" in text
    if form == "markdown":
        (line,) = (line for line in text.splitlines() if "50%" in line)
        assert line.startswith(r"| a\|b & 50% of\_$x$ #1 {y} [bold]z[/bold] &lt;i> \\n \\x1b[31m |")
    if form == "latex":
        assert (
            r"{}a\textbar{}b \& 50\% of\_\$x\$ \#1 \{y\} [bold]z[/bold] "
            r"\textless{}i\textgreater{} \textbackslash{}n \textbackslash{}x1b[31m & 1 &"
        ) in text
    if form == "json":
        assert json.loads(text)["rows"][0]["label"] == HOSTILE
    if form == "csv":
        assert next(csv.DictReader(io.StringIO(text)))["label"].startswith("a|b & 50%")


def test_every_format_ends_in_one_new_line(table: Tables) -> None:
    for form in FORMATS:
        assert render(table, form).endswith("\n"), form
