"""`sora auto --max-differ`: a promise about answers, tested on rows without labels."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from pathlib import Path

import pytest
from datasets import Dataset

from sora_cli.app import run
from sora_cli.core.errors import SoraError
from sora_cli.core.exit_codes import FAILED, NO_VERDICT, OK
from sora_cli.report import read_report
from sora_cli.search.certificate import Certificate, read_certificate
from sora_cli.verify import certificate as recheck
from tests.helpers_errors import error_of
from tests.helpers_images import corner_rows, write_pair_recipe
from tests.helpers_runs import pair_rows, write_rows
from tests.sora_cli.commands.test_auto import (
    NOT_VERIFIED,
    goes_on_after_a_signal,
    leaves,
    other,
    placed,
    scored_once,
)
from tests.sora_cli.experiments.auto.support import (
    ROWS,
    auto_recipe,
    certificate_of,
    recipe_with_inputs,
)

__all__ = ["scored_once"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return recipe_with_inputs(tmp_path_factory.mktemp("answers"))


def words(recipe: Path, out: Path, share: str = "60%") -> list[str]:
    given = ["--max-differ", share, "--unlabelled", str(recipe.parent / "inputs.jsonl")]
    return ["auto", str(recipe), *given, "--no-verify", f"output.dir={out}"]


@pytest.fixture(scope="module")
def done(recipe: Path) -> Path:
    out = recipe.parent / "answered"
    assert run(words(recipe, out)) == OK
    return out


@pytest.fixture
def found(done: Path) -> Certificate:
    return certificate_of(done)


def test_the_certificate_is_about_answers(done: Path, found: Certificate) -> None:
    assert (found.promise.kind, found.promise.given, found.promise.max_drop) == (
        "differ",
        "60%",
        0.6,
    )
    assert found.bound.exact
    assert found.bound.method.startswith("exact for answers")
    sets = {name: (part.split, part.rows) for name, part in found.rows.items()}
    assert sets == {
        "train": ("train", 124),  # none of them is held out
        "screening": ("unlabelled", 25),
        "test": ("unlabelled", 75),
        "validation": ("validation", 24),
    }
    assert found.full.test == 1.0
    for size in found.candidates:
        assert size.test is not None
        assert size.test.drop == pytest.approx((size.test.differing or 0) / 75)
        assert size.test.score == pytest.approx(1 - size.test.drop)
        assert size.test.kept == (size.test.upper <= 0.6)
    report = read_report(done)
    assert report is not None
    drop = found.full.reported["validation"] - report.metrics["validation"]["accuracy"]
    assert found.written.reported["validation"].drop == pytest.approx(drop)


def test_what_is_said(
    recipe: Path, done: Path, found: Certificate, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert run([*words(recipe, tmp_path / "out"), "--dry-run"]) == OK
    told = capsys.readouterr()
    said, shown = " ".join(told.err.split()), " ".join(told.out.split())
    assert "3 of 108 rows of" in said
    assert "are training rows: they are left out" in said
    assert "5 of 108 rows of" in said
    assert "the column 'label' is ignored" in said
    assert "rows without labels: 25 screen the sizes, 75 test them; 124 are trained on" in shown
    assert "promise: at most 60 % of the answers differ, with 95% confidence; certified" in shown
    assert not (tmp_path / "out").exists()
    assert run([*words(recipe, tmp_path / "json"), "--json"]) == OK
    told = capsys.readouterr()
    assert Certificate.model_validate_json(told.out) == found
    assert "of the answers are expected to differ before healing" in told.err
    assert "differing answers: " in told.err
    for page in ("card", "page", "list", "inspect"):
        if page == "card":
            text = (done / "adapter" / "README.md").read_text(encoding="utf-8")
        else:
            capsys.readouterr()
            command = {"page": ["report", str(done), "--force"], "list": ["list", str(done.parent)],
                       "inspect": ["inspect", str(done)]}[page]  # fmt: skip
            assert run(command) == OK
            text = capsys.readouterr().out
        if page == "page":
            text = (done / "report.html").read_text(encoding="utf-8")
            assert "at most 60% of the answers differ from full rank&#39;s" in text
        assert "worse" not in text, page
        assert page in {"list", "inspect"} or "of the answers differ from those at" in text


def test_the_options_take_the_place_of_the_recipes_promise(
    recipe: Path, done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = read_report(done)
    assert report is not None
    assert report.recipe["auto"]["max_drop"] is None
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


def test_it_is_scored_again(
    recipe: Path, done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = shutil.copytree(done, tmp_path / "elsewhere")
    command = ["verify", str(moved), "--certificate"]
    assert run([*command, "--json"]) == OK
    facts = json.loads(capsys.readouterr().out)
    assert facts["verdict"] == "same"
    assert all(one["stored"] == one["here"] for one in facts["compared"])
    inputs = recipe.parent / "inputs.jsonl"
    elsewhere = shutil.move(inputs, tmp_path / "moved.jsonl")
    try:
        error = error_of(capsys, *command)
        assert f"there is no file '{inputs}'" in error[0]
        assert error[-1] == "say where it is now: auto.unlabelled=FILE"
        assert run([*command, f"auto.unlabelled={elsewhere}"]) == OK
        other_rows = write_rows(tmp_path / "other.jsonl", pair_rows(ROWS, seed=10))
        capsys.readouterr()
        assert run([*command, f"auto.unlabelled={other_rows}"]) == FAILED
        assert "the test rows are not those of the certificate" in capsys.readouterr().out
    finally:
        shutil.move(elsewhere, inputs)


@pytest.mark.usefixtures("scored_once")
def test_a_certificate_from_before_next_tokens_still_holds(done: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(done, tmp_path / "copy")
    for name, block in (("certificate.json", ["promise"]), ("report.json", ["recipe", "auto"])):
        document = json.loads((copy / name).read_text(encoding="utf-8"))
        inner = document
        for key in block:
            inner = inner[key]
        assert inner.pop("next_tokens") is False
        (copy / name).write_text(json.dumps(document), encoding="utf-8")
    assert recheck.recheck(copy)[1].exit_code == OK


@pytest.mark.usefixtures("scored_once")
def test_no_field_of_the_certificate_can_be_changed(done: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(done, tmp_path / "copy")
    file = copy / "certificate.json"
    document = json.loads(file.read_text(encoding="utf-8"))
    passing = set()
    for path, value in leaves(document):
        name = ".".join(str(part) for part in path if not isinstance(part, int))
        name = name.replace("screened.", "screened[].")
        changed = "drop" if path == ("promise", "kind") else other(path, value)
        file.write_text(placed(document, path, changed), encoding="utf-8")
        with suppress(SoraError):  # exit code 2
            if recheck.recheck(copy)[1].exit_code == 0:
                assert name in NOT_VERIFIED, path
                passing.add(name)
    assert passing == NOT_VERIFIED.keys()


@pytest.mark.usefixtures("scored_once")
@pytest.mark.parametrize("by", [1, -1])
def test_a_row_more_or_less_is_another_certificate(done: Path, tmp_path: Path, by: int) -> None:
    """Changed together, so that share, count and bound fit each other."""
    copy = shutil.copytree(done, tmp_path / "copy")
    file = copy / "certificate.json"
    document = json.loads(file.read_text(encoding="utf-8"))
    test = document["candidates"][0]["test"]
    document["full"]["test"] = 1 + by / 75
    test["score"] += by / 75
    file.write_text(json.dumps(document), encoding="utf-8")
    assert recheck.recheck(copy)[1].exit_code == FAILED


@pytest.mark.long
def test_rows_that_cannot_certify_the_promise(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = words(recipe, out, "1%")
    assert run([*command, "--dry-run"]) == OK
    shown = capsys.readouterr().out
    assert "75 test rows cannot certify this, even if no answer differs; it takes 299" in shown
    assert run([*command, "--json"]) == NO_VERDICT
    found = Certificate.model_validate_json(capsys.readouterr().out)
    assert not found.certified
    assert [size.test for size in found.candidates] == [None]
    shown = f"75 {NEW_INPUTS} cannot show that at most 1 % of the answers differ"
    assert found.statement.startswith(shown)
    assert run(["verify", str(out), "--certificate"]) == OK


@pytest.mark.long
@pytest.mark.parametrize("step", [3, 30, 32])
def test_a_signal_in_training_and_in_healing(
    recipe: Path, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    command = words(recipe, tmp_path / "out")
    goes_on_after_a_signal(monkeypatch, step, command, done, tmp_path / "out")


@pytest.mark.long
def test_numbers_are_compared_within_a_tolerance(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = {"name": "sequence-regression"}
    path = auto_recipe(tmp_path, task=task, auto={"rows": None})
    write_rows(tmp_path / "inputs.jsonl", pair_rows(ROWS, seed=9))
    command = words(path, tmp_path / "out")
    assert "two models never give the same one" in error_of(capsys, *command)[0]
    assert run([*command, "--tolerance", "2"]) == OK
    found = read_certificate(tmp_path / "out")
    assert found is not None
    assert found.bound.exact
    assert found.written.test is not None
    assert found.promise.tolerance == 2
    assert "% of the answers differ by more than 2 from those at full rank" in found.statement
    assert run(["verify", str(tmp_path / "out"), "--certificate"]) == OK


NEW_INPUTS = "distinct inputs that training has not seen"


def with_own_texts(rows: Dataset, start: int) -> Dataset:
    """The rows with a text of its own each: pairs with one text are the same input."""
    codes = [f"{start + row:08b}" for row in range(len(rows))]
    words = [code.replace("0", "the ").replace("1", "a ") for code in codes]
    texts = [f"{own}{text}" for own, text in zip(words, rows["text"][:], strict=True)]
    return rows.remove_columns("text").add_column("text", texts)


@pytest.mark.parametrize("promise", ["--max-differ", "--max-drop"])
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
