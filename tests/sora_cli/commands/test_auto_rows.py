"""Rows of a promise of `sora auto`: which are chosen, what is said of them, earlier searches."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from sora_cli.adapter.digest import result_digest
from sora_cli.app import run
from sora_cli.core.exit_codes import NO_VERDICT, OK
from sora_cli.data.rows import load_rows
from sora_cli.experiments.auto.plan import plan_auto
from sora_cli.experiments.auto.rows import planned_rows
from sora_cli.recipe.auto import Basis
from sora_cli.recipe.load import load_recipe, load_stored
from sora_cli.report import read_report
from sora_cli.run.prepare import load_task
from sora_cli.search.record import AutoRecord, read_auto
from tests.helpers_errors import error_of
from tests.helpers_images import corner_rows, write_pair_recipe
from tests.helpers_runs import pair_rows, signal_at, write_rows
from tests.matrix import rest_is_long
from tests.present import present
from tests.sora_cli.commands.promises import REPEATS, Makers, repeated, with_inputs
from tests.sora_cli.experiments.auto.support import ROWS, auto_recipe, certificate_of


@pytest.fixture
def recipe(makers: Makers) -> Path:
    """Rows without labels beside it."""
    return makers.recipe(with_inputs)


def differ(recipe: Path, out: Path, share: str = "60%") -> list[str]:
    given = ["--max-differ", share, "--unlabelled", str(recipe.parent / "inputs.jsonl")]
    return ["auto", str(recipe), *given, "--no-verify", f"output.dir={out}"]


def test_what_is_planned_for_answers(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*differ(recipe, tmp_path / "out"), "--dry-run"]) == OK
    told = capsys.readouterr()
    said, shown = " ".join(told.err.split()), " ".join(told.out.split())
    assert "3 of 108 rows of" in said
    assert "are training rows: they are left out" in said
    assert "5 of 108 rows of" in said
    assert "the column 'label' is ignored" in said
    assert "rows without labels: 25 screen the sizes, 75 test them; 124 are trained on" in shown
    assert "promise: at most 60 % of the answers differ, with 95% confidence; certified" in shown
    assert not (tmp_path / "out").exists()


def test_the_options_take_the_place_of_the_recipes_promise(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = tmp_path / "both.yaml"
    both.write_text(
        f"extends: {recipe}\nauto: {{max_drop: null, max_differ: 5%, "
        f"unlabelled: {recipe.parent}/inputs.jsonl}}\n"
    )
    out = [f"output.dir={tmp_path}/out", "--dry-run", "auto.rows=60"]
    assert run(["auto", str(both), "--max-drop", "50pt", *out]) == OK
    told = capsys.readouterr()
    assert "promise: a drop of at most 0.5" in told.out
    # the recipe's rows without labels may test this drop, too
    assert "(auto.basis=labels): chance to certify 0.5" in told.err


@pytest.mark.long
def test_numbers_are_compared_within_a_tolerance(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = {"name": "sequence-regression"}
    path = auto_recipe(tmp_path, task=task, auto={"rows": None})
    write_rows(tmp_path / "inputs.jsonl", pair_rows(ROWS, seed=9))
    command = differ(path, tmp_path / "out")
    assert "two models never give the same one" in error_of(capsys, *command)[0]
    assert run([*command, "--tolerance", "2"]) == OK
    found = certificate_of(tmp_path / "out")
    assert found.bound.exact
    assert found.written.test is not None
    assert found.promise.tolerance == 2
    assert "% of the answers differ by more than 2 from those at full rank" in found.statement
    assert run(["verify", str(tmp_path / "out"), "--certificate"]) == OK


def with_own_texts(rows: Dataset, start: int) -> Dataset:
    """The rows with a text of its own each: pairs with one text are the same input."""
    codes = [f"{start + row:08b}" for row in range(len(rows))]
    words = [code.replace("0", "the ").replace("1", "a ") for code in codes]
    texts = [f"{own}{text}" for own, text in zip(words, rows["text"][:], strict=True)]
    return rows.remove_columns("text").add_column("text", texts)


@pytest.mark.parametrize("promise", rest_is_long(["--max-differ", "--max-drop"]))
def test_rows_that_choose_among_each_other_have_no_exact_bound(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], promise: str
) -> None:
    recipe = write_pair_recipe(tmp_path, rows=124, auto={"sizes": 1})
    with_own_texts(corner_rows(124), 0).to_parquet(str(tmp_path / "train.parquet"))
    inputs = tmp_path / "inputs.parquet"
    with_own_texts(corner_rows(80, seed=9), 124).to_parquet(str(inputs))
    out = tmp_path / "searched"
    more = {
        "--max-differ": ["90%", "--unlabelled", str(inputs)],
        "--max-drop": ["90pt", "auto.rows=60"],
    }
    command = ["auto", str(recipe), promise, *more[promise], "--no-verify", f"output.dir={out}"]
    assert run(command) in (OK, NO_VERDICT)
    reason = "each row chooses among all test rows, so the rows depend on each other"
    assert f"about this number of rows: {reason}" in " ".join(capsys.readouterr().err.split())
    certificate = certificate_of(out)
    assert not certificate.bound.exact
    assert certificate.bound.method.startswith("approximate for ")
    assert certificate.statement.endswith(reason)
    assert run(["verify", str(out), "--certificate"]) == OK


def drop(recipe: Path, out: Path, *more: str) -> list[str]:
    given = ["--max-drop", "60pt", "--unlabelled", str(recipe.parent / "inputs.jsonl")]
    return ["auto", str(recipe), *given, f"output.dir={out}", *more, "--no-verify"]


def test_what_the_plan_says(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sixteen labelled rows and a hundred others: the plan chooses, and says how."""
    assert run([*drop(recipe, tmp_path / "out"), "--dry-run"]) == OK
    told = capsys.readouterr()
    said, shown = " ".join(told.err.split()), " ".join(told.out.split())
    assert "chance to certify 0.6, in the mean of sizes that differ on 0.25% to 5%" in said
    assert "labels 100% (16 rows), answers 100% (75 rows)" in said
    assert "labels test the drop, and rows without labels are not used (auto.basis=labels)" in said
    assert "rows held out of the training split: 16 screen" in shown
    capsys.readouterr()
    assert run([*drop(recipe, tmp_path / "out"), "--max-drop", "10pt", "--dry-run"]) == OK
    told = capsys.readouterr()
    said, shown = " ".join(told.err.split()), " ".join(told.out.split())
    assert "3 of 108 rows of" in said
    assert "the column 'label' is ignored" in said
    assert "(auto.basis=answers): chance to certify 0.1" in said
    assert "rows without labels: 25 screen the sizes, 75 test them" in shown
    command = drop(recipe, tmp_path / "out", "auto.basis=answers", "auto.rows=60")
    assert run([*command, "--dry-run"]) == OK
    told = capsys.readouterr()
    assert "certified if at most 37 of 75 test rows are answered differently" in told.out
    assert "auto.rows is not used: no labelled row is held out" in told.err
    assert not (tmp_path / "out").exists()


def test_rows_without_labels_that_are_not_used(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for more, reason in (
        (["auto.basis=labels"], "auto.basis=labels"),
        (
            ["task.metrics=[f1]", "auto.rows=80"],
            "f1 can drop by more than the share of answers that differ",
        ),
    ):
        capsys.readouterr()
        assert run([*drop(recipe, tmp_path / "out", *more), "--dry-run"]) == OK
        assert f"auto.unlabelled is not used: {reason}" in " ".join(capsys.readouterr().err.split())


def test_a_metric_whose_bound_takes_more_rows_holds_more_out(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["auto", recipe, "--max-drop", "60pt", "task.metrics=[f1]"]
    lines = error_of(capsys, *command, f"output.dir={tmp_path / 'out'}")
    assert "124 rows, and 198 are needed: 66 held out" in lines[0]
    assert "auto.rows=67 holds that many out all the same" in lines[-1]
    assert run([*map(str, command), "auto.rows=67", "--dry-run"]) == OK


def test_the_smallest_drop_that_is_planned(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = drop(recipe, tmp_path / "out")
    command[command.index("60pt")] = "smallest"
    assert run([*command, "--dry-run"]) == OK
    told = capsys.readouterr()
    assert "smallest drop that they can be expected to certify: labels 0.1" in told.err
    assert "promise: a drop of at most 0.1" in told.out


def test_a_search_that_was_begun_keeps_its_basis(recipe: Path) -> None:
    given = ["auto.max_drop=10pt", f"auto.unlabelled={recipe.parent}/inputs.jsonl"]
    plan = plan_auto(load_recipe(str(recipe), given))
    planned, rows, _ = planned_rows(plan)
    assert (planned.promise.basis, rows.unlabelled) == ("answers", True)
    bases: tuple[Basis, ...] = ("labels", "answers")
    for basis in bases:
        record = AutoRecord(name="begun", recipe={}, basis=basis)
        planned, rows, _ = planned_rows(plan, record)
        assert (planned.promise.basis, planned.block.basis) == (basis, basis)
        assert rows.unlabelled == (basis == "answers")


def test_it_is_not_continued_on_other_rows(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    inputs, out = tmp_path / "inputs.jsonl", tmp_path / "out"
    rows = (recipe.parent / "inputs.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    inputs.write_text("".join(rows), encoding="utf-8")
    command = [*drop(recipe, out), "--max-drop", "10pt", "--unlabelled", str(inputs)]
    with monkeypatch.context() as patched:
        signal_at(patched, 3)
        assert run(command) == 128 + signal.SIGTERM
    record = present(read_auto(out))
    assert (record.basis, record.rows["test"].rows) == ("answers", 75)
    inputs.write_text("".join(rows[:30]), encoding="utf-8")
    error = error_of(capsys, *command)
    assert f"the screening rows are not the same as when the run in '{out}' started" in error[0]
    assert error[1:] == [
        "25 rows of unlabelled then, 7 rows of unlabelled now",
        "restore them, or train elsewhere: output.dir=DIR",
    ]
    assert read_auto(out) == record


@pytest.fixture
def stock(makers: Makers) -> Path:
    """Rows of which some repeat an input."""
    return makers.recipe(repeated)


@pytest.fixture(scope="module")
def row_by_row(makers: Makers) -> Path:
    """A search that deals repeated rows one by one, as former versions did."""
    recipe = makers.recipe(repeated)
    out = recipe.parent / "row-by-row"
    words = ["data.repeats=separate", f"output.dir={out}", "--no-verify"]
    assert run(["auto", str(recipe), *words]) in (0, 3)
    return out


def texts(rows: Any) -> list[str]:
    return [f"{row['sentence1']} | {row['sentence2']}" for row in rows]


def of_earlier(value: Any) -> Any:
    """A stored document without the keys that versions before `data.repeats` did not have."""
    if isinstance(value, list):
        return [of_earlier(one) for one in value]
    if not isinstance(value, dict):
        return value
    return {k: of_earlier(v) for k, v in value.items() if k not in {"repeats", "held", "inputs"}}


def as_earlier(run_folder: Path) -> None:
    for file in run_folder.rglob("*.json"):
        if file.name in {"auto.json", "report.json", "certificate.json"}:
            file.write_text(json.dumps(of_earlier(json.loads(file.read_text()))))


def test_a_search_of_an_earlier_version_is_checked_as_it_was_made(
    row_by_row: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = shutil.copytree(row_by_row, tmp_path / "earlier")
    as_earlier(out)
    stored = present(read_report(out))
    assert "repeats" not in stored.recipe["data"]
    rows = load_task(load_stored(stored.recipe, out / "report.json", "x").recipe)[1]
    assert set(texts(rows.train)) & set(texts(rows.select))  # dealt row by row
    capsys.readouterr()
    assert run(["verify", str(out), "--certificate"]) == 0
    assert "rows that repeat an input were not kept apart" in capsys.readouterr().out


def test_a_search_of_an_earlier_version_goes_on_as_it_began(
    stock: Path, row_by_row: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same command continues it, although the key's default is another one now."""
    whole, part = row_by_row, tmp_path / "part"
    command = ["auto", str(stock), "--no-verify"]
    with monkeypatch.context() as patched:
        signal_at(patched, 15)
        code = run([*command, "data.repeats=separate", f"output.dir={part}"])
    assert code == 128 + signal.SIGTERM
    as_earlier(part)
    assert run([*command, f"output.dir={part}"]) in (0, 3)
    record = present(read_auto(part))
    assert record.rows["test"].held is None
    for name in (".", "sizes/full", "sizes/1"):
        assert result_digest(part / name / "adapter") == result_digest(whole / name / "adapter")


def test_what_is_typed_is_not_replaced(stock: Path) -> None:
    loaded = load_recipe(stock)
    earlier = of_earlier(loaded.resolved())
    assert loaded.recipe.data.repeats == "together"
    assert loaded.continuing(None).recipe.data.repeats == "together"
    assert loaded.continuing(loaded.resolved()).recipe.data.repeats == "together"
    assert loaded.continuing(earlier).recipe.data.repeats == "separate"
    typed = load_recipe(stock, ["data.repeats=together"])
    assert typed.continuing(earlier).recipe.data.repeats == "together"
    assert load_stored(earlier, stock, "x").recipe.data.repeats == "separate"
    assert load_rows(loaded.recipe.data.model_copy(update={"repeats": "separate"})).train


def test_a_dry_run_counts_the_inputs(
    stock: Path, makers: Makers, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["auto", str(stock), "--dry-run", "output.dir=elsewhere"]) == 0
    out, said = capsys.readouterr()
    assert "repeat another one" in said
    numbers = certificate_of(makers.of(f"auto {REPEATS}").out).rows["test"].rows
    assert f"{numbers} test them" in out


@pytest.mark.long
@pytest.mark.parametrize(
    ("by_answers", "more", "said"),
    [
        (
            False,
            ["--max-drop", "0.5pt", "auto.rows=60"],
            "--max-drop smallest (0.105); 0.005 needs a training split of about 41,800 rows; this "
            "one has 124",
        ),
        (True, ["--max-differ", "1%"], "75 test rows cannot certify this, even if no answer "
         "differs; it takes 299"),
    ],
    ids=["labels", "answers"],
)  # fmt: skip
def test_too_few_rows_are_planned(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], by_answers: bool,
    more: list[str], said: str,
) -> None:  # fmt: skip
    command = differ(recipe, tmp_path / "out") if by_answers else ["auto", str(recipe)]
    assert run([*command, *more, f"output.dir={tmp_path}/out", "--dry-run"]) == OK
    assert said in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
