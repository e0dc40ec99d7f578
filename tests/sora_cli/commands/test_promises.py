"""What holds of every promise, by whichever command: true, tested in order, on rows apart, the same
when it is scored again, never to be edited, and no matter whether a signal came between."""

from __future__ import annotations

import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from sora_cli.adapter.digest import result_digest
from sora_cli.adapter.reading import read_adapter
from sora_cli.app import run
from sora_cli.core.exit_codes import FAILED, NO_VERDICT, OK
from sora_cli.data.content import data_fingerprint
from sora_cli.model.files import TRAINED_ON
from sora_cli.recipe.load import load_stored
from sora_cli.report import read_report
from sora_cli.run.prepare import load_task
from sora_cli.search.binomial import share_bound
from sora_cli.search.evidence import Evidence
from sora_cli.search.paired import exact_bound
from tests.helpers_errors import error_text
from tests.helpers_runs import pair_rows, signal_at, write_rows
from tests.present import present
from tests.sora_cli.commands.promises import (
    ANSWERS,
    BY_ANSWERS,
    KINDS,
    LABELS,
    OTHER,
    REPEATS,
    SEARCHES,
    Made,
    Makers,
    Record,
    make,
    record_of,
    same_end,
)
from tests.sora_cli.experiments.auto.support import certificate_of


@pytest.fixture
def record(made: Made) -> Record:
    return record_of(made)


every = pytest.mark.parametrize("name", KINDS)
every_search = pytest.mark.parametrize("name", SEARCHES)


# what is recorded is true


@every
def test_it_is_of_what_was_written(made: Made, record: Record) -> None:
    _, given, most, basis = made.kind.promise
    assert made.code == (OK if record.certified else NO_VERDICT)
    assert (record.given, record.metric, record.confidence) == (given, made.kind.metric, 0.95)
    if given != "smallest":
        assert record.certified
        assert record.promise == (most, basis)
    adapter = read_adapter(made.out)
    assert sum(adapter.ranks().values()) == record.written.components
    stored = sum(f.parameters for f in adapter.layers.values())
    # without a component a layer stays as zeros, so that every tool can load it
    assert stored == record.written.parameters or not record.written.components
    assert record.written.upper is not None
    assert record.written.drop <= record.written.upper
    assert record.written.passed == record.certified == (record.written.upper <= record.promise[0])


@every
def test_sizes_are_tested_from_the_largest_until_one_fails(made: Made, record: Record) -> None:
    sizes = [size for size in record.sizes if size.upper is not None]
    assert [s.parameters for s in sizes] == sorted((s.parameters for s in sizes), reverse=True)
    assert all(size.passed for size in sizes[:-1])
    last = max((i for i, size in enumerate(sizes) if size.passed), default=0)
    assert sizes[last] == record.written
    for size in sizes:
        assert size.upper is not None
        assert size.passed == (size.upper <= record.promise[0])
        if size.differing is not None:  # else no more than the written one's is recorded
            assert size.upper == pytest.approx(_bound(made, record, size.drop, size.differing))


def _bound(made: Made, record: Record, drop: float, differing: int) -> float:
    """The exact bound of what is recorded of a test: rows lost and won, or differing answers."""
    rows, by_answers = record.rows, made.kind.promise[0] == "differ" or record.promise[1] == ANSWERS
    if by_answers:
        assert drop == pytest.approx(differing / rows)
        return share_bound(differing, rows, record.confidence)
    lost = (differing + drop * rows) / 2
    assert lost == pytest.approx(round(lost))
    return exact_bound(round(lost), differing - round(lost), rows, record.confidence)


@pytest.mark.parametrize("name", OTHER)
def test_the_drop_is_that_of_the_answers(made: Made, record: Record, tmp_path: Path) -> None:
    """Both models answer the test rows by `sora predict`, and the bound is computed again."""
    folder, by_labels = made.recipe.parent, made.kind.promise[3] == LABELS
    before = folder / ("whole" if made.kind.command == "extract" else "out")
    files = [folder / ("validation.jsonl" if by_labels else "others.jsonl")]
    if made.kind.promise[0] == "differ":  # only training rows are left out
        files = [tmp_path / "untrained.jsonl"]
        lines = (folder / "inputs.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        files[0].write_text("".join(lines[10:]), encoding="utf-8")
    rows = [json.loads(line) for line in files[0].read_text(encoding="utf-8").splitlines()]
    assert len(rows) == record.rows == made.kind.rows
    answers = []
    for place in (before, made.out):
        out = tmp_path / "answers.jsonl"
        assert run(["predict", str(place), str(files[0]), "-o", str(out), "--force"]) == OK
        answers.append([str(json.loads(x)["prediction"]) for x in out.read_text().splitlines()])
    wanted = [str(row["label"]) for row in rows]
    lost = won = 0
    for first, second, label in zip(*answers, wanted, strict=True):
        lost += (first == label and second != label) if by_labels else first != second
        won += by_labels and first != label and second == label
    assert record.written.drop == pytest.approx((lost - won) / len(rows))
    expected = (exact_bound(lost, won, len(rows), 0.95) if by_labels
                else share_bound(lost, len(rows), 0.95))  # fmt: skip
    assert record.written.upper == pytest.approx(expected)


@every_search
def test_a_search_reports_what_it_wrote(made: Made) -> None:
    found, report = certificate_of(made.out), read_report(made.out)
    assert report is not None
    assert found.promise.kind == made.kind.promise[0]
    assert found.adapter == result_digest(made.out / "adapter") == report.digests["adapter"]
    assert found.written.digest == found.adapter
    assert found.full.digest == result_digest(made.out / "sizes/full/adapter")
    assert report.parameters.adapter_end == found.written.parameters
    assert sum(rank.end for rank in report.ranks.values()) == found.written.components
    assert found.written.parameters <= found.written.max_params < found.full.parameters
    drop = found.full.reported["validation"] - report.metrics["validation"]["accuracy"]
    assert found.written.reported["validation"].drop == pytest.approx(drop)
    assert found.bound.exact
    named = [size.max_params for size in found.screened if size.named]
    assert [size.max_params for size in found.candidates] == named[: len(found.candidates)]
    for size in found.candidates:
        assert size.test is not None
        assert size.test.drop == pytest.approx(found.full.test - size.test.score)
        assert size.heal_steps == found.full.steps - found.full.cut_at
    if found.promise.kind == "differ":
        assert found.full.test == 1.0
        assert report.recipe["auto"]["max_drop"] is None
        assert found.bound.method.startswith("exact for answers")
        assert Evidence.model_validate_json(made.stdout) == found
    else:
        assert report.recipe["auto"]["basis"] in (None, found.promise.basis)
    if found.promise.given == "smallest":
        assert found.bound.smallest_drop is not None
        assert 0 <= found.promise.max_drop - found.bound.smallest_drop < 0.005


@pytest.mark.parametrize("name", [name for name in OTHER if name.startswith("heal")])
def test_healed_sizes_are_runs(made: Made, record: Record) -> None:
    whole, sizes = certificate_of(made.out).full, record.sizes
    assert len(sizes) == 3
    for share, size in zip((2, 4, 8), sizes, strict=True):
        assert 0 < size.parameters <= whole.parameters // share
    report = present(read_report(made.out))
    assert report.start is not None
    assert report.start.digest == result_digest(made.recipe.parent / "out" / "adapter")
    assert report.recipe["training"]["evaluate"] == "no"  # the rows that test choose nothing
    whole_report = present(read_report(made.recipe.parent / "out"))
    if made.kind.promise[3] == LABELS:
        before, after = (r.metrics["validation"]["accuracy"] for r in (whole_report, report))
        assert before - after == pytest.approx(sizes[-1].drop)


# no row plays two parts


@every_search
def test_no_row_plays_two_parts(made: Made, name: str) -> None:
    found, report = certificate_of(made.out), read_report(made.out)
    assert report is not None
    data = load_stored(report.recipe, made.out / "report.json", "x").recipe
    rows = load_task(data)[1]
    assert data_fingerprint(rows.train) == found.rows["train"].digest
    if name != f"auto {REPEATS}":
        assert {n: (part.split, part.rows) for n, part in found.rows.items()} == made.kind.rows
    if name == f"auto {LABELS}":
        assert len(rows.select) == 60
    texts = {part: [f"{row['sentence1']} | {row['sentence2']}" for row in getattr(rows, part)]
             for part in ("train", "select")}  # fmt: skip
    if found.rows["test"].split == "unlabelled":
        assert set(texts["train"]) >= {f"{r['sentence1']} | {r['sentence2']}" for r in pair_rows(3)}
        return
    assert not set(texts["train"]) & set(texts["select"])
    if name == f"auto {REPEATS}":
        _check_repeats(found, texts["select"])


def _check_repeats(found: Evidence, held: list[str]) -> None:
    test, screening = found.rows["test"], found.rows["screening"]
    assert test.held is not None
    assert test.rows < test.held
    assert test.held + screening.rows == len(held)
    assert test.rows + (screening.inputs or 0) == len(set(held))
    assert f"on {test.rows} distinct inputs that training has not seen" in found.statement
    share = (test.held - test.rows) / test.held
    assert f"{share:.1%} of the {test.held} test rows repeat an input" in found.statement
    assert found.written.test is not None
    assert found.written.test.every is not None
    assert "over all of them as they come" in found.statement


def test_rows_of_a_finished_adapter_that_are_not_known(makers: Makers, tmp_path: Path) -> None:
    """Moved data do not hide the training rows, since hashes of them lie beside the adapter."""
    made = makers.of(f"prune {ANSWERS}")
    folder = shutil.copytree(made.recipe.parent, tmp_path / "copy")
    report = folder / "out" / "report.json"
    report.write_text(report.read_text().replace(str(made.recipe.parent), str(folder)))
    columns = {"text": "x", "label": None, "split": "test"}
    lines = (folder / "inputs.jsonl").read_text(encoding="utf-8").splitlines()
    write_rows(folder / "inputs.jsonl", [json.loads(line) | columns for line in lines])
    words = tuple(w for w in made.kind.words if w not in ("--recipe", "FOLDER/tiny.yaml"))
    kind = replace(made.kind, words=words, codes=(OK, NO_VERDICT))
    known = make(kind, folder / "tiny.yaml", tmp_path / "known")
    assert "10 of 100 rows of" in known.told
    assert "nothing records" not in known.told
    assert record_of(known).rows == 90
    (folder / "train.jsonl").unlink()
    moved = make(kind, folder / "tiny.yaml", tmp_path / "moved")
    assert "nothing records" not in moved.told
    assert record_of(moved).rows == 90
    (folder / "out" / "adapter" / TRAINED_ON).unlink()
    unknown = make(kind, folder / "tiny.yaml", tmp_path / "unknown")
    assert "nothing records all that" in unknown.told
    assert "that training has not seen" not in unknown.told
    assert record_of(unknown).rows == 100


# it is said


@every
def test_what_is_said(
    made: Made, record: Record, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in made.kind.said:
        assert words in made.told
    if made.kind.command == "auto":
        return _check_pages(made, record, tmp_path, capsys)
    certificate = certificate_of(made.out)
    assert f"certified: {certificate.statement}" in made.told
    assert f"kept: {certificate.saved}" in made.told
    if made.kind.promise[0] == "differ" and made.kind.command != "heal":
        assert "accuracy" not in made.stdout
    assert run(["inspect", str(made.out)]) == OK
    assert certificate.statement in " ".join(capsys.readouterr().out.split())
    return None


def _check_pages(
    made: Made, record: Record, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    certificate = certificate_of(made.out)
    card = (made.out / "adapter" / "README.md").read_text(encoding="utf-8")
    status = certificate.status.capitalize()
    assert f"## Certificate\n\n{status}: {certificate.statement}." in card
    copy, texts = shutil.copytree(made.out, tmp_path / "copy"), [card]
    for words in (
        ["report", str(copy), "--force"],
        ["list", str(tmp_path)],
        ["inspect", str(copy)],
    ):
        capsys.readouterr()
        assert run(words) == OK
        texts.append(capsys.readouterr().out)
    texts.append((copy / "report.html").read_text(encoding="utf-8"))
    assert made.kind.page in texts[-1]
    if record.certified:
        assert "certified" in texts[2]
    if made.kind.promise[0] == "differ":
        assert not [text for text in texts if "worse" in text]
        assert "of the answers differ from those at" in card


# a signal changes nothing


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "step"),
    [
        (f"auto {LABELS}", 3),  # in training at full rank
        (f"auto {LABELS}", 15),  # at its last step but one
        (f"auto {ANSWERS}", 32),  # in healing
        (f"auto {BY_ANSWERS}", 16),
        (f"heal {LABELS}", 1),  # in the first size
        (f"heal {BY_ANSWERS}", 2),
    ],
)
def test_it_goes_on_after_a_signal(
    made: Made, step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """The same command, or the one that is named, ends as if nothing had stopped it."""
    words = made.line(tmp_path / "out")
    monkeypatch.setattr("sys.argv", ["sora", *words])
    with monkeypatch.context() as patched:
        signal_at(patched, step)
        assert run(words) == 128 + signal.SIGTERM
    if made.kind.command == "heal":
        assert f"sora {' '.join(words)} --resume" in capsys.readouterr().err
        assert "holds sizes already" in error_text(capsys, *words)
        words = [*words, "--resume"]
    assert run(words) == made.code
    same_end(made.out, tmp_path / "out")


# rows that cannot certify it


NONE = {
    f"prune {LABELS}": (
        ["--max-drop", "0.04", "--confidence", "0.99"], "the 30 rows can certify 0.",
    ),
    f"extract {LABELS}": (
        ["--max-drop", "0", "--confidence", "0.99", "--json"],
        "30 test rows can be expected to certify",
    ),
    f"heal {LABELS}": (["--max-drop", "0.02"], "the 30 rows can certify 0."),
}  # fmt: skip


@pytest.mark.parametrize("name", NONE)
def test_rows_that_cannot_certify_it(made: Made, name: str, tmp_path: Path) -> None:
    """A size is written that looks good, and it is not called certified."""
    more, said = NONE[name]
    kind = replace(made.kind, codes=(OK, NO_VERDICT) if name.startswith("heal") else (NO_VERDICT,))
    none = make(kind, made.recipe, tmp_path / "out", *more)
    assert said in none.told
    found = record_of(none)
    assert found.written.drop <= found.promise[0]
    if name.startswith("heal"):  # the first failure ends it; the uncut adapter may be left
        assert len(found.sizes) == 1
        assert len(list((none.out / "sizes").iterdir())) == 1
        assert not found.sizes[0].passed
        assert found.written.upper is None or not found.certified
        return
    assert not found.certified
    if name.startswith("extract"):
        told = json.loads(none.stdout)["certificate"]
        assert (told["status"], told["promise"]["confidence"]) == ("not certified", 0.99)


SEARCHED = {
    f"auto {LABELS}": (
        ["--max-drop", "0.5pt", "--json", "data.files.test=FOLDER/validation.jsonl",
         "data.validation=[test]"],
        "too few test rows to certify this drop", "reported test",
    ),
    f"auto {ANSWERS}": (
        ["--max-differ", "1%"],
        "75 test rows cannot certify this, even if no answer differs; it takes 299", "validation",
    ),
}  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("name", SEARCHED)
def test_rows_that_cannot_certify_a_search(
    made: Made, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more, said, reported = SEARCHED[name]
    given = [word.replace("FOLDER", str(made.recipe.parent)) for word in more]
    none = make(replace(made.kind, codes=(NO_VERDICT,)), made.recipe, tmp_path / "out", *given)
    assert said in none.told
    assert (none.out / "adapter").is_dir()
    found = certificate_of(none.out)
    assert Evidence.model_validate_json(none.stdout) == found
    assert found.status == "not certified"
    assert "cannot show that" in found.statement
    assert found.statement.startswith(f"{found.rows['test'].rows} distinct inputs that training")
    assert found.rows[reported].rows == 24
    assert [size.test for size in found.candidates] == [None]  # what screening likes
    words = ["verify", str(none.out), "--certificate"]
    assert run(words) == OK
    file = none.out / "certificate.json"
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace('"not certified"', '"certified"'), encoding="utf-8")
    capsys.readouterr()
    assert run(words) == FAILED
    edited = 'status: "certified" in the certificate, but it should be "not certified"'
    assert edited in capsys.readouterr().out
    assert certificate_of(none.out).status == "not certified"
