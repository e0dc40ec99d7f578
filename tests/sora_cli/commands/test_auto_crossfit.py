"""`sora auto` with cross-fitting and with refit, end to end on a tiny model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from sora_cli.adapter.digest import result_digest
from sora_cli.app import run
from sora_cli.core.exit_codes import FAILED
from sora_cli.data.content import data_fingerprint
from sora_cli.data.rows import load_rows
from sora_cli.recipe.load import load_stored
from sora_cli.report import read_report
from sora_cli.verify import certificate as recheck
from tests.helpers_runs import files_of, train
from tests.sora_cli.commands.test_auto import (
    NOT_VERIFIED,
    goes_on_after_a_kill,
    goes_on_after_a_signal,
    leaves,
    other,
    placed,
    scored_once,  # noqa: F401, a fixture
)
from tests.sora_cli.experiments.auto.support import auto_recipe, certificate_of

CROSSED = ["halves/1/sizes/full", "halves/2/sizes/full"]
CROSSED += [f"halves/{half}/sizes/{size}" for half in (1, 2) for size in (1, 2)]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    auto = {"max_drop": "30pt", "rows": None, "cost": 0.6, "cross_fit": True}
    return auto_recipe(tmp_path_factory.mktemp("cross"), auto=auto, training={"epochs": 5})


@pytest.fixture(scope="module")
def done(recipe: Path) -> Path:
    """A finished search by cross-fitting."""
    assert run(["auto", str(recipe), "--no-verify"]) == 0
    return recipe.parent / "out"


@pytest.fixture(scope="module")
def refit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished search on rows held out, whose size was trained on all rows."""
    recipe = auto_recipe(tmp_path_factory.mktemp("refit"))
    assert run(["auto", str(recipe), "--refit", "--no-verify"]) == 0
    return recipe.parent / "out"


def test_the_certificate_is_of_both_halves(done: Path) -> None:
    found, report = certificate_of(done), read_report(done)
    assert report is not None
    assert found.final is not None
    assert (found.design, found.certified, len(found.candidates)) == ("cross-fit", True, 2)
    assert found.adapter == result_digest(done / "adapter") == report.digests["adapter"]
    for half, part in enumerate(found.halves, 1):
        places = [f"halves/{half}/sizes/{name}" for name in ("full", "1", "2")]
        sizes = [part.full, *part.candidates]
        assert [size.directory for size in sizes] == places
        assert [size.digest for size in sizes] == [
            result_digest(done / place / "adapter") for place in places
        ]
    for number, size in enumerate(found.candidates):
        tests = [part.candidates[number].test for part in found.halves]
        assert size.test is not None
        uppers = [test.upper for test in tests if test is not None]
        assert size.test.upper == pytest.approx(sum(uppers) / 2)
        assert size.test.kept == (size.test.upper <= 0.3)
    assert report.recipe["data"]["selection"] == "validation"
    assert found.final.parameters == report.parameters.adapter_end
    assert found.final.reported == {"validation": report.metrics["validation"]["accuracy"]}
    card = (done / "adapter" / "README.md").read_text(encoding="utf-8")
    assert "the written adapter was trained on all rows and was not itself tested" in card


def test_every_row_tests_or_screens_and_all_of_them_train(done: Path) -> None:
    found, texts = certificate_of(done), list[set[str]]()
    for half in (1, 2):
        report = read_report(done / f"halves/{half}/sizes/full")
        assert report is not None
        rows = load_rows(load_stored(report.recipe, done / "report.json", "x").recipe.data)
        assert data_fingerprint(rows.train) == found.rows[f"half {half}"].digest
        assert data_fingerprint(rows.select) == found.rows[f"half {3 - half}"].digest
        texts.append(set(zip(rows.train["sentence1"], rows.train["sentence2"], strict=True)))
    numbers = {name: part.rows for name, part in found.rows.items()}
    assert numbers == {
        "train": 124, "screening": 16, "test": 108, "half 1": 54, "half 2": 54, "validation": 24,
    }  # fmt: skip
    assert len(texts[0] & texts[1]) < 5  # a few short rows occur twice in the data


@pytest.mark.parametrize("place", ["halves/2/sizes/full", "."])
def test_what_begins_anew_is_plain_training(done: Path, tmp_path: Path, place: str) -> None:
    report = read_report(done / place)
    assert report is not None
    plain = tmp_path / "plain"
    values = report.recipe | {"output": {"dir": str(plain)}}
    recipe = tmp_path / "plain.yaml"
    recipe.write_text(json.dumps({k: v for k, v in values.items() if v is not None}))
    train(recipe, "auto=null")
    one, alone = (files_of(directory / "adapter") for directory in (done / place, plain))
    for name in ("adapter_config.json", "adapter_model.safetensors"):  # others tell of the run
        assert one[name] == alone[name]


@pytest.mark.parametrize("kind", ["done", "refit"])
def test_the_certificate_holds_when_it_is_scored_again(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = shutil.copytree(request.getfixturevalue(kind), tmp_path / "elsewhere")
    capsys.readouterr()
    assert run(["verify", str(moved), "--certificate", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["verdict"] == "same"
    assert all(one["stored"] == one["here"] for one in facts["compared"])
    assert any(one["name"] == "written, validation" for one in facts["compared"])
    assert run(["report", str(moved), "--force"]) == 0
    page = (moved / "report.html").read_text(encoding="utf-8")
    assert "written: an adapter trained on all rows, which no test has seen" in page
    for only in ("half 2", "the mean of two bounds, one of each half, with 99.5% confidence"):
        assert (only in page) == (kind == "done")


@pytest.mark.usefixtures("scored_once")
@pytest.mark.parametrize("kind", ["done", "refit"])
def test_no_field_of_the_certificate_can_be_changed(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    copy = shutil.copytree(request.getfixturevalue(kind), tmp_path / "copy")
    file = copy / "certificate.json"
    document = json.loads(file.read_text(encoding="utf-8"))
    passing = set()
    for path, value in leaves(document):
        name = ".".join(str(part) for part in path if not isinstance(part, int))
        file.write_text(placed(document, path, other(path, value)), encoding="utf-8")
        if code(copy) == 0:
            passing.add(name.replace("screened.", "screened[]."))
    assert passing == NOT_VERIFIED.keys()
    gone = [{"final": None}, {"halves": []}, {"halves": [], "final": None}]
    for change in gone if kind == "done" else gone[:1]:
        file.write_text(json.dumps(document | change), encoding="utf-8")
        assert code(copy) != 0
    file.write_text(json.dumps(document), encoding="utf-8")
    assert code(copy) == 0


def code(directory: Path) -> int:
    """The exit code of the check; 2 if it cannot be made."""
    from sora_cli.core.errors import SoraError

    try:
        return recheck.recheck(directory)[1].exit_code
    except SoraError:
        return 2


def test_an_adapter_of_a_half_is_looked_at(
    done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(done, tmp_path / "copy")
    shutil.copytree(
        done / "halves/1/sizes/1/adapter", copy / "halves/2/sizes/1/adapter", dirs_exist_ok=True
    )
    assert run(["verify", str(copy), "--certificate"]) == FAILED
    said = capsys.readouterr().out
    assert "halves/2/sizes/1/adapter is not the adapter of the certificate" in said
    rows = certificate_of(done).rows["half 1"].rows
    assert f"1 of {rows} rows (half 1), 1 of {rows} rows (half 2) may differ" in said


def test_the_plan_is_said_before_training(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(["auto", str(recipe), "--dry-run", f"output.dir={out}"]) == 0
    said = capsys.readouterr().out
    assert "cross-fitting: full rank and up to 2 of 5 sizes are trained on each half" in said
    assert "all work: about 2.3 times one LoRA run on all rows" in said
    assert not out.exists()


def test_it_is_chosen_by_itself_and_said(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["auto", str(recipe), "--dry-run", f"output.dir={tmp_path}/out", "--max-drop", "16pt"]
    assert run([*words, "auto.cross_fit=auto"]) == 0
    told = capsys.readouterr()
    assert "rows held out can be expected to certify 0.1" in told.err
    assert "cross-fitting: full rank and up to" in told.out
    assert run([*words, "--no-cross-fit"]) == 0
    told = capsys.readouterr()
    assert "too few test rows to certify this drop" in told.out
    assert "cross-fitting" not in told.out + told.err


def test_force_clears_both_halves(done: Path, tmp_path: Path) -> None:
    from sora_cli.commands.auto import clear

    copy = shutil.copytree(done, tmp_path / "copy")
    (copy / "halves" / "mine.txt").touch()
    clear(copy)
    assert sorted(path.name for path in copy.rglob("*")) == ["halves", "mine.txt"]


def test_the_refit_adapter_is_trained_on_the_test_rows_too(refit: Path) -> None:
    found, report = certificate_of(refit), read_report(refit)
    assert report is not None
    assert found.final is not None
    assert (found.design, found.halves) == ("held out", [])
    assert found.adapter == found.final.digest == result_digest(refit / "adapter")
    assert found.written.digest == result_digest(refit / found.written.directory / "adapter")
    assert found.adapter != found.written.digest
    assert (found.rows["train"].rows, found.rows["refit"].rows) == (64, 124)
    assert report.data.rows["train"] == 124
    assert f"the tested adapter in {found.written.directory}" in found.scope
    tested = f"the tested adapter in {found.written.directory}, not the written one: with 95%"
    card = (refit / "adapter" / "README.md").read_text(encoding="utf-8")
    assert found.statement.startswith(tested)
    assert f"Certified: {tested}" in card
    assert not (refit / "state.safetensors").exists()


@pytest.mark.long
@pytest.mark.parametrize(
    ("kind", "number"),
    [
        ("halves/1/sizes/full/checkpoints", 2),
        ("auto.json", 2),  # after full rank on the first half
        ("halves/2/sizes/full/checkpoints", 1),
        ("halves/2/sizes/full/.state", 1),
        ("auto.json", 3),  # after full rank on both
        ("auto.json", 4),  # after screening
        ("halves/1/sizes/1/adapter:rename", 1),
        ("halves/2/sizes/1/checkpoints", 1),
        ("halves/2/sizes/2/.report", 2),
        ("out/checkpoints", 2),  # of the last run, on all rows
        ("out/.adapter", 1),
        ("certificate.json", 1),
        ("curve.png", 1),
    ],
)
def test_killed_at_any_moment(
    recipe: Path, done: Path, tmp_path: Path, kind: str, number: int
) -> None:
    out = tmp_path / "out"
    words = ["auto", str(recipe), "--no-verify", f"output.dir={out}"]
    goes_on_after_a_kill(kind, number, words, done, out, CROSSED)
    assert not list(out.rglob("state.safetensors.*"))


@pytest.mark.long
@pytest.mark.parametrize(("kind", "number"), [("out/checkpoints", 1), ("certificate.json", 1)])
def test_killed_in_the_refit(refit: Path, tmp_path: Path, kind: str, number: int) -> None:
    out = tmp_path / "out"
    recipe = refit.parent / "tiny.yaml"
    words = ["auto", str(recipe), "--refit", "--no-verify", f"output.dir={out}"]
    goes_on_after_a_kill(kind, number, words, refit, out, ["sizes/full", "sizes/1"])


@pytest.mark.long
def test_a_signal_in_the_second_half(
    recipe: Path, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["auto", str(recipe), "--no-verify", f"output.dir={tmp_path}/out"]
    step = 37  # the last run alone has so many steps
    goes_on_after_a_signal(monkeypatch, step, words, done, tmp_path / "out", CROSSED)
