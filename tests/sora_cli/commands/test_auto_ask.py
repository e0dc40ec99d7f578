"""`sora auto --ask`: the table of rows to label, the labels of people, and their promise."""

from __future__ import annotations

import json
import re
import shutil
import stat
from collections.abc import Callable, Sequence
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sora_cli.app import run
from sora_cli.core.exit_codes import LABELS_WANTED, NO_VERDICT, OK
from sora_cli.report import read_report
from sora_cli.search.kept_answers import Kept
from sora_cli.search.record import read_auto
from tests.helpers_asking import Row, fill, rows_of, truth, write
from tests.helpers_errors import refused
from tests.helpers_runs import pair_rows, write_rows
from tests.present import present
from tests.sora_cli.experiments.auto.support import auto_recipe, certificate_of

Output = pytest.CaptureFixture[str]
SIZES = {"epochs": 8, "learning_rate": 0.005, "seed": 2}
"""A training whose sizes differ on some rows."""


@dataclass(frozen=True)
class Way:
    """A search that asks for labels, in a folder of its own."""

    folder: Path
    promise: str = "10pt"

    @property
    def out(self) -> Path:
        return self.folder / "out"

    @property
    def table(self) -> Path:
        return self.folder / "ask.csv"

    def words(self, *more: str) -> list[str]:
        given = ["--max-drop", self.promise, "--unlabelled", "inputs.jsonl", "--ask", "ask.csv"]
        return ["auto", "tiny.yaml", *given, "--no-verify", "output.dir=out", *more]

    def run(self, *more: str) -> int:
        with chdir(self.folder):  # a copy of the folder goes on with the same command
            return run(self.words(*more))

    def finish(self) -> int:
        """Fill in the truth, size by size, until no label is wanted; return the exit code."""
        self.label()
        while (code := self.run()) == LABELS_WANTED:
            self.label()
        return code

    def verify(self) -> int:
        with chdir(self.folder):
            return run(["verify", "out", "--certificate"])

    def error(self, capsys: Output, *more: str) -> list[str]:
        with chdir(self.folder):
            # an id depends on what was trained
            return refused(capsys, *self.words(*more), hide="[bcdfghjkmnpqrstvwxz]{10}")

    def rows(self) -> list[Row]:
        return rows_of(self.table)

    def write(self, rows: Sequence[Row]) -> None:
        write(self.table, rows)

    def label(
        self, number: int | None = None, *, wrong: bool = False, column: str = "label"
    ) -> None:
        """Fill in the truth, or its opposite, of the first rows or of all."""
        fill(self.table, lambda row: str(int(truth(row)) ^ wrong), number, column)


def small(folder: Path) -> Path:
    path = auto_recipe(folder, auto={"rows": None, "sizes": 2}, training=SIZES)
    rows = [{k: v for k, v in row.items() if k != "label"} for row in pair_rows(100, seed=9)]
    write_rows(folder / "inputs.jsonl", [*rows, *rows[:5], *rows[:3]])
    return path


@pytest.fixture(scope="module")
def waiting(tmp_path_factory: pytest.TempPathFactory) -> Way:
    """A search that waits for labels; nobody writes into it."""
    way = Way(tmp_path_factory.mktemp("ask"))
    small(way.folder)
    assert way.run() == LABELS_WANTED
    return way


@pytest.fixture
def way(waiting: Way, tmp_path: Path) -> Way:
    shutil.copytree(waiting.folder, tmp_path, dirs_exist_ok=True)
    return Way(tmp_path)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_labels_are_asked_for_read_and_checked_again(
    waiting: Way, tmp_path: Path, capsys: Output
) -> None:
    """The table says nothing of the models, and what holds raw rows is for its owner only."""
    rows = waiting.rows()
    assert list(rows[0]) == ["id", "sentence1", "sentence2", "label", "label_2", "allowed"]
    assert {row["allowed"] for row in rows} == {"0 | 1"}
    assert {row["label"] for row in rows} == {""}
    assert [row["id"] for row in rows] == sorted(row["id"] for row in rows)
    private = [waiting.table, waiting.folder / "ask.txt", Kept.of(waiting.out).path]
    assert {mode(path) for path in private} == {0o600}
    assert not (waiting.out / "certificate.json").exists()
    record = present(read_auto(waiting.out))
    assert record.status == "interrupted"
    assert record.error is not None
    assert f"{len(rows)} labels are wanted" in record.error
    assert {"pool", "test", "screening"} <= record.rows.keys()

    shutil.copytree(waiting.folder, tmp_path, dirs_exist_ok=True)
    way = Way(tmp_path)
    way.label()
    assert way.run() == LABELS_WANTED  # those of the smaller size
    more = way.rows()
    assert {row["id"] for row in rows} < {row["id"] for row in more}
    assert [row["id"] for row in more if row["label"]] == [row["id"] for row in rows]
    capsys.readouterr()
    assert way.finish() == OK
    told = " ".join(capsys.readouterr().out.split())
    found = certificate_of(way.out)
    assert found.certified
    assert found.asked is not None
    assert (found.asked.wanted, found.asked.answered) == (len(more), len(more))
    assert found.asked.by_size
    assert f"certified: {found.statement}" in told
    assert "lost" in found.statement
    texts = {text for row in rows for text in (row["sentence1"], row["sentence2"])}
    for name in ("certificate.json", "auto.json", "report.json"):
        assert not [text for text in texts if text in (way.out / name).read_text()]
    assert way.verify() == OK
    kept = Kept.of(way.out)
    kept.keep_answers({key: (str(1 - int(a)), b) for key, (a, b) in kept.answers().items()})
    assert way.verify() == 1
    assert "asked.answers" in capsys.readouterr().out


@pytest.mark.long
def test_the_certified_size_is_kept_where_nobody_labels_more(way: Way, capsys: Output) -> None:
    way.label()
    assert way.run() == LABELS_WANTED
    told = " ".join(capsys.readouterr().err.split())
    assert "a larger size is certified already: without these labels, the same command" in told
    table = way.table.read_bytes()
    assert way.run() == OK
    assert way.table.read_bytes() == table
    assert certificate_of(way.out).chosen == 0
    assert "have no label, which may change the outcome" in capsys.readouterr().err
    assert way.verify() == OK
    assert way.finish() in (OK, NO_VERDICT)
    assert len(present(certificate_of(way.out).asked).answers) == 64
    assert way.verify() == OK


@pytest.mark.long
def test_a_search_that_asked_for_all_sizes_at_once_goes_on(way: Way) -> None:
    """`--ask-all`, also of a search that began size by size, and the record of an old version."""
    first = way.rows()
    assert way.run("--ask-all") == LABELS_WANTED
    assert len(way.rows()) > len(first)
    record = way.out / "auto.json"
    old = json.loads(record.read_text())
    assert old["asked"].pop("by_size") is False
    assert old["recipe"]["auto"].pop("ask_all") is True
    record.write_text(json.dumps(old))
    way.label()
    assert way.run() in (OK, NO_VERDICT)
    assert not present(certificate_of(way.out).asked).by_size
    assert way.verify() == OK


@pytest.mark.long
def test_a_table_that_nobody_has_filled_in_is_left_alone(way: Way, capsys: Output) -> None:
    before = way.table.read_bytes()
    assert way.run() == LABELS_WANTED
    assert way.table.read_bytes() == before
    told = capsys.readouterr().err
    assert "labels are wanted: fill in the column 'label' of" in told
    assert "then the same command:" in told
    way.table.unlink()
    assert way.run() == LABELS_WANTED  # written again
    assert way.table.read_bytes() == before


@pytest.mark.long
def test_a_half_filled_table_gives_a_wider_bound_and_can_be_filled_further(
    way: Way, capsys: Output
) -> None:
    way.label(1, wrong=True)
    if way.run() == LABELS_WANTED:  # by how many rows differ, which rounding changes
        assert way.run() == OK
    told = " ".join(capsys.readouterr().err.split())
    assert "rows have no label, which may change the outcome" in told
    half = certificate_of(way.out)
    assert "without a label; rows without an agreed label count as lost" in half.statement
    assert way.verify() == OK
    rows = way.rows()
    way.label()
    way.write([rows[0], *way.rows()[1:]])  # the first label stays
    if way.run() == LABELS_WANTED:  # those of the smaller size, which nobody gives
        assert way.run() == OK
    whole = certificate_of(way.out)
    assert whole.asked is not None
    assert whole.asked.answered == len(rows)
    assert not whole.asked.changed
    assert way.verify() == OK
    fill(way.table, lambda row: row["label"] or truth(row))
    assert way.run() in (OK, NO_VERDICT)
    assert "holds a finished run" in way.error(capsys)[0]


@pytest.mark.long
def test_a_label_that_was_changed_after_a_look_promises_nothing(way: Way, capsys: Output) -> None:
    assert way.finish() == OK
    way.label(1, wrong=True)
    lines = way.error(capsys)
    assert "1 label was changed in" in lines[0]
    assert "--force: they count, and nothing is promised any more" in lines[2]
    assert certificate_of(way.out).certified
    assert way.run("--force") == NO_VERDICT
    found = certificate_of(way.out)
    assert found.asked is not None
    assert found.asked.changed == [way.rows()[0]["id"]]
    assert found.statement.startswith("a label was changed after it had been read")
    assert (way.out / "sizes" / "full" / "adapter").is_dir()  # nothing was deleted
    assert way.verify() == OK


def _no_class(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    return [{**rows[0], "label": "perhaps"}, *rows[1:]]


def _missing(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    return rows[1:]


def _twice(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    return [*rows, rows[0]]


def _foreign(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    return [{**rows[0], "id": "bcdfghjkmn"}, *rows[1:]]


Change = Callable[[list[dict[str, str]]], list[dict[str, str]]]


@pytest.mark.long
@pytest.mark.parametrize(
    ("change", "what"),
    [
        (_no_class, "is none of the labels"),
        (_missing, "lacks 1 of"),
        (_twice, "twice"),
        (_foreign, "that this run has not asked for"),
    ],
)
def test_a_table_that_is_not_right_is_refused_and_nothing_lost(
    way: Way, capsys: Output, change: Change, what: str
) -> None:
    way.label()
    right = way.rows()
    way.write(change(right))
    assert what in way.error(capsys)[0]
    assert not Kept.of(way.out).answers()
    way.write(right)
    assert way.run() == LABELS_WANTED  # those of the smaller size
    assert way.run() == OK


@pytest.mark.long
def test_another_file_or_seed_is_another_promise(way: Way, capsys: Output) -> None:
    assert "auto.seed was 42, is now 7" in way.error(capsys, "auto.seed=7")[0]
    inputs = way.folder / "inputs.jsonl"
    row = {"sentence1": "cat cat cat cat", "sentence2": "dog dog dog"}
    inputs.write_text(f"{inputs.read_text()}{json.dumps(row)}\n")
    assert "rows are not the same as when the run in" in way.error(capsys)[0]


@pytest.mark.long
def test_the_limit_of_labels_can_be_raised(tmp_path: Path, capsys: Output) -> None:
    """The rows that test stay; a size that differs on too many is asked about later."""
    way = Way(tmp_path, "8pt")
    small(way.folder)
    assert way.run("--labels", "1") == NO_VERDICT
    told = " ".join(capsys.readouterr().err.split())
    need = present(
        re.search(r"nothing is asked: the largest size differs .* with --labels (\d+)", told)
    )
    assert not way.table.exists()
    record = present(read_auto(way.out))
    rows = record.rows["test"]
    assert way.run("--labels", need[1]) == LABELS_WANTED
    assert len(way.rows()) == int(need[1])
    way.label()  # the larger size passes, and the next one counts
    assert way.run("--labels", str(int(need[1]) + 20)) == LABELS_WANTED
    labelled = [row for row in way.rows() if row["label"]]
    assert len(labelled) == int(need[1]) < len(way.rows())
    record = present(read_auto(way.out))
    assert record.rows["test"] == rows
    way.label()
    assert way.run("--labels", str(int(need[1]) + 20)) in (OK, NO_VERDICT)
    assert way.verify() == OK
    assert "was started with another recipe" in way.error(capsys, "--labels", "1")[0]


@pytest.mark.long
def test_after_a_failure_the_rows_that_have_not_tested_are_kept(
    tmp_path: Path, capsys: Output
) -> None:
    """The command that is told tests on them alone."""
    way, few = Way(tmp_path, "2pt"), ("--labels", "8", "training.epochs=2")
    small(way.folder)
    inputs = [{k: v for k, v in row.items() if k != "label"} for row in pair_rows(700, seed=9)]
    write_rows(way.folder / "inputs.jsonl", inputs)
    capsys.readouterr()
    while (code := way.run(*few)) == LABELS_WANTED:
        way.label()
    assert code == NO_VERDICT
    said = " ".join(capsys.readouterr().err.split())
    assert "certify the largest size in four of five draws" in said
    record, unused = present(read_auto(way.out)), way.folder / "ask.unused.jsonl"
    kept = [json.loads(line) for line in unused.read_text().splitlines()]
    assert len(kept) == record.rows["pool"].rows - record.rows["test"].rows
    assert all(row in inputs for row in kept)
    assert mode(unused) == 0o600
    asked = [(row["sentence1"], row["sentence2"]) for row in way.rows()]
    assert not {*asked} & {(row["sentence1"], row["sentence2"]) for row in kept}
    command = present(re.search(r"to test on them: sora (.*? output\.dir=\S+)", said))[1]
    assert command.endswith("--unlabelled ask.unused.jsonl --ask ask-2.csv output.dir=out-2")


@pytest.mark.long
def test_two_people_label_and_one_of_them_is_contradicted(way: Way) -> None:
    way.label()
    way.label(column="label_2")
    way.label(1, wrong=True, column="label_2")
    rows = len(way.rows())
    if way.run() == LABELS_WANTED:  # those of the smaller size, which nobody gives
        assert way.run() == OK
    found = certificate_of(way.out)
    assert found.asked is not None
    assert (found.asked.twice, found.asked.agreed) == (rows, rows - 1)
    assert f"two people labelled {rows} rows and agree on {rows - 1} of them" in found.statement
    assert way.verify() == OK


@pytest.mark.long
def test_nothing_of_the_rows_is_pushed(way: Way, capsys: Output) -> None:
    assert way.finish() == OK
    capsys.readouterr()
    pushed = ["push", str(way.out), "me/it", "--dry-run", "--base-id", "me/base", "--json"]
    assert run(pushed) == OK
    files = json.loads(capsys.readouterr().out)["files"]
    assert files
    assert not [name for name in files if name.endswith((".csv", ".txt", ".jsonl"))]
    for words in (["inspect"], ["report"]):
        run([*words, str(way.out)])
    page = (way.out / "report.html").read_text() + capsys.readouterr().out
    assert not [row for row in way.rows() if f">{row['sentence1']}<" in page]


def test_what_goes_with_a_table_of_rows_to_label(
    tmp_path: Path, capsys: Output, waiting: Way
) -> None:
    recipe = str(waiting.folder / "tiny.yaml")
    inputs = ["--unlabelled", str(waiting.folder / "inputs.jsonl")]
    out, ask = f"output.dir={tmp_path}/new", ["--ask", str(tmp_path / "ask.csv")]

    def told(*words: Any) -> str:
        return refused(capsys, "auto", recipe, *words, out)[0]

    assert "--ask goes with --max-drop and --unlabelled" in told("--max-drop", "1pt", *ask)
    assert "--ask goes with" in told("--max-differ", "1%", *inputs, *ask)
    assert "auto.labels goes with the table" in told("--max-drop", "1pt", "--labels", "9")
    assert "asks for no label" in told("--max-drop", "1pt", *inputs, *ask, "auto.basis=answers")
    text = ["--ask", str(tmp_path / "ask.txt")]
    assert "is a csv file, not" in told("--max-drop", "1pt", *inputs, *text)
    there = ["--max-drop", "1pt", *inputs, "--ask", str(waiting.table)]
    assert "is there already, and is not replaced" in told(*there)
    labels = waiting.table.read_bytes()
    assert "is there already" in waiting.error(capsys, "--force", "training.epochs=9")[0]
    assert waiting.table.read_bytes() == labels
    assert (waiting.out / "auto.json").exists()
    words = ["auto", recipe, "--max-drop", "10pt", *inputs, *ask, out, "--dry-run"]
    assert run(words) == OK
    said = capsys.readouterr()
    shown = " ".join(said.out.split())
    assert "25 screen the sizes, of 75 others as many test as the promise needs" in shown
    assert re.search(r"labels are asked for where answers differ: of about \d+ rows, if", shown)
    assert "8 of 108 rows of" in " ".join(said.err.split())
    assert not list(tmp_path.iterdir())
    assert read_report(waiting.out) is None
