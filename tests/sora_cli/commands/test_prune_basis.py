"""`--max-drop` with rows without labels for a finished adapter: which rows test, and the record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sora_cli.adapter.directory import read_adapter
from sora_cli.app import run
from sora_cli.core.exit_codes import OK
from sora_cli.search.agreement import share_bound
from sora_cli.search.search import Search
from tests.helpers_errors import refused
from tests.helpers_models import tiny_bert
from tests.helpers_runs import pair_rows, train, write_recipe, write_rows

LABELLED, OTHERS = 30, 80


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 30 validation rows; beside it 80 inputs, ten training rows and ten of these 30."""
    folder = tmp_path_factory.mktemp("basis")
    made = write_recipe(
        folder, tiny_bert(num_labels=2), method={"threshold": 0.0}, training={"max_steps": 8}
    )
    validation = pair_rows(LABELLED, seed=1)
    write_rows(folder / "validation.jsonl", validation)
    inputs = [*pair_rows(10), *validation[:10], *pair_rows(OTHERS, seed=4)]
    write_rows(folder / "inputs.jsonl", inputs)
    train(made)
    return made


def words(recipe: Path, out: Path, *more: str) -> list[str]:
    given = ["--max-drop", "40pt", "--unlabelled", str(recipe.parent / "inputs.jsonl")]
    return ["prune", str(recipe.parent / "out"), "-o", str(out), *given, "-r", str(recipe), *more]


def entry_of(out: Path) -> dict[str, Any]:
    return dict(read_adapter(out).meta.lineage[-1])


@pytest.mark.parametrize(
    ("basis", "rows", "said"),
    [
        ("labels", LABELLED, "--unlabelled is not used: auto.basis=labels"),
        ("answers", OTHERS, "answers to rows without labels test the drop, and labels do not"),
    ],
)
def test_the_basis_by_hand(
    recipe: Path, tmp_path: Path, capsys: Any, basis: str, rows: int, said: str
) -> None:
    out = tmp_path / "out"
    assert run(words(recipe, out, f"auto.basis={basis}")) == OK
    told = capsys.readouterr()
    assert said in told.err
    entry = entry_of(out)
    assert (entry["basis"], entry["rows"], entry["metric"]) == (basis, rows, "accuracy")
    assert entry["max_drop"] == 0.4
    assert entry["bound"] <= 0.4
    if basis == "answers":
        assert "20 of 100 rows of" in told.err
        assert "are labelled rows of the recipe: they are left out" in told.err
        assert entry["bound"] == share_bound(round(entry["drop"] * OTHERS), OTHERS, 0.95)
        assert f"certified: {entry['components'][1]} components lose at most" in told.out
        assert "of accuracy, within 0.4, because at most" in told.out
    assert run(["inspect", str(out)]) == OK
    assert f"basis {basis}" in " ".join(capsys.readouterr().out.split())


def test_the_basis_is_planned_before_a_row_is_scored(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def stop(*_: Any, **__: Any) -> Search[Any]:
        raise KeyboardInterrupt

    monkeypatch.setattr("sora_cli.search.cut.smallest_cut", stop)
    for drop, plan in (("40pt", "labels"), ("4pt", "answers")):
        capsys.readouterr()
        assert run([*words(recipe, tmp_path / "out"), "--max-drop", drop]) == 130
        said = capsys.readouterr().err
        assert f"(auto.basis={plan}): chance to certify" in said
        assert f" ({LABELLED} rows), answers " in said
        assert f" ({OTHERS} rows)" in said


def test_the_smallest_drop(recipe: Path, tmp_path: Path, capsys: Any) -> None:
    assert run([*words(recipe, tmp_path / "out"), "--max-drop", "smallest"]) in (0, 3)
    said = capsys.readouterr().err
    assert "smallest drop that they can be expected to certify: labels 0.1" in said
    entry = entry_of(tmp_path / "out")
    assert entry["basis"] == "answers"
    assert 0 < entry["max_drop"] < 0.15


def test_metrics_that_answers_do_not_bound(recipe: Path, tmp_path: Path, capsys: Any) -> None:
    f1 = words(recipe, tmp_path / "out", "task.metrics=[f1]", "--confidence", "0.5")
    assert run(f1) in (0, 3)
    said = capsys.readouterr().err
    assert "--unlabelled is not used: f1 can drop by more than the share of answers" in said
    assert entry_of(tmp_path / "out")["basis"] == "labels"
    refused(capsys, *words(recipe, tmp_path / "no", "task.metrics=[f1]", "auto.basis=answers"))


def test_a_basis_without_rows(recipe: Path, tmp_path: Path, capsys: Any) -> None:
    run_of = str(recipe.parent / "out")
    command = ["prune", run_of, "-o", str(tmp_path / "no"), "--max-drop", "9pt", "-r", str(recipe)]
    for more in ([], ["--heal", "2"]):
        refused(capsys, *command, *more, "auto.basis=answers")


def test_sizes_that_are_healed(recipe: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "healed"
    more = ["--heal", "2", "--no-verify", "auto.basis=answers"]
    command = [word for word in words(recipe, out, *more) if word not in {"-r", str(recipe)}]
    assert run(command) == OK  # with the recipe of the run
    record = json.loads((out / "sizes.json").read_text(encoding="utf-8"))
    assert (record["certified"], record["basis"], record["max_drop"]) == (
        True, "answers", 0.4,
    )  # fmt: skip
    tested = [size["bound"] for size in record["sizes"] if size["bound"] is not None]
    for bound in tested:
        assert bound["rows"] == OTHERS
        assert bound["upper"] == share_bound(bound["differing"], OTHERS, 0.95)
    assert "(auto.basis=answers)" in capsys.readouterr().err


def test_a_model_is_extracted(recipe: Path, tmp_path: Path, capsys: Any) -> None:
    model = tmp_path / "model"
    assert run(["train", str(recipe), "method.name=full", f"output.dir={model}"]) == OK
    base, out = recipe.parent / "base", tmp_path / "small"
    given = words(recipe, out, "auto.basis=answers")[4:]
    command = ["extract", str(model), "--base", str(base), "-o", str(out), *given]
    capsys.readouterr()
    assert run(command) in (0, 3)
    entry = entry_of(out)
    assert (entry["basis"], entry["rows"]) == ("answers", OTHERS)
    assert f"tried on {OTHERS} unlabelled rows" in capsys.readouterr().out
