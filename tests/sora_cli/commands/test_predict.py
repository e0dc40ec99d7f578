"""`sora predict`: rows in, the same rows out with the model's answers beside them."""

from __future__ import annotations

import csv
import gc
import io
import json
import shutil
import signal
import subprocess
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import accuracy_score
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from sora_cli.app import run
from sora_cli.core.interruption import Interrupted
from sora_cli.train.trainer import AdapterTrainer
from sora_cli.use import formats, predictor
from tests import warm
from tests.helpers_errors import refused
from tests.helpers_families import whole_model
from tests.helpers_first_data import write_excel
from tests.helpers_runs import Trained, pair_rows, tiny_tokenizer, write_rows
from tests.shared_files import ROOT

ROWS = pair_rows(24, seed=1)
ASKED = [{key: value for key, value in row.items() if key != "label"} for row in ROWS]


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows without labels."""
    return Path(write_rows(tmp_path_factory.mktemp("asked") / "asked.jsonl", ASKED))


def predict(target: Path, file: Path, out: Path, *words: str) -> list[dict[str, Any]]:
    """`sora predict` in this process, which must end well; the rows it writes."""
    assert run(["predict", str(target), str(file), "-o", str(out), *words]) == 0
    return read(out)


def read(file: Path) -> list[dict[str, Any]]:
    if file.suffix == ".parquet":
        return list(pq.read_table(file).to_pylist())
    text = file.read_text(encoding="utf-8-sig")
    if file.suffix == ".jsonl":
        return [json.loads(line) for line in text.splitlines()]
    return list(csv.DictReader(io.StringIO(text)))


def test_the_score_is_that_of_the_run(classifier: Trained, asked: Path, tmp_path: Path) -> None:
    """In parts of any size, in the order of the rows; labels that are there do not matter."""
    labelled = [{**row, "label": 1 - row["label"]} for row in ROWS]
    files = [asked, Path(write_rows(tmp_path / "labelled.jsonl", labelled))]
    expected = classifier.report.metrics["validation"]["accuracy"]
    made = []
    for file in files:
        rows = predict(classifier.run, file, tmp_path / f"{file.stem}.out.jsonl")
        own = [{k: v for k, v in r.items() if k not in ("prediction", "probability")} for r in rows]
        assert own == [json.loads(line) for line in file.read_text().splitlines()]
        made.append([(row["prediction"], row["probability"]) for row in rows])
        given = [int(row["prediction"]) for row in rows]
        assert accuracy_score([r["label"] for r in ROWS], given) == expected
    assert made[0] == made[1]


def test_probabilities_are_those_of_the_model(
    classifier: Trained, asked: Path, tmp_path: Path
) -> None:
    merged = tmp_path / "merged"
    assert run(["merge", str(classifier.run), "-o", str(merged), "--no-verify"]) == 0
    made = [
        predict(target, asked, tmp_path / f"{i}.parquet", "--probabilities")
        for i, target in enumerate((classifier.run, classifier.run / "adapter", merged))
    ]
    model = AutoModelForSequenceClassification.from_pretrained(merged).eval()
    for rows in zip(ASKED, *made, strict=True):
        pair = tiny_tokenizer()(*rows[0].values(), return_tensors="pt")
        shares = model(**pair).logits[0].softmax(dim=-1).tolist()
        for row in rows[1:]:
            assert [row["probability_0"], row["probability_1"]] == pytest.approx(shares, abs=1e-5)
            assert row["probability"] == max(row["probability_0"], row["probability_1"])
            assert row[f"probability_{row['prediction']}"] == row["probability"]


def test_what_a_file_holds_stays_as_it_is(classifier: Trained, tmp_path: Path) -> None:
    """Cells and values that a reader would change: 007, 1.50, NA, quotes, keys of one row only."""
    table = tmp_path / "a.csv"
    text = 'id;sentence1;price;sentence2;note\n007;"cat ""sees"" dog";1.50;old;NA\n\n08;a;2;b;\n'
    table.write_text(text, encoding="utf-8-sig")
    out = tmp_path / "b.csv"
    rows = predict(classifier.run, table, out)
    header, *lines = out.read_text(encoding="utf-8-sig").splitlines()
    assert header == "id;sentence1;price;sentence2;note;prediction;probability"
    assert [line.rsplit(";", 2)[0] for line in lines] == [
        '007;"cat ""sees"" dog";1.50;old;NA', "08;a;2;b;"
    ]  # fmt: skip
    assert len(rows) == 2
    values = [
        {"sentence1": "cat", "sentence2": "dog", "of": {"deep": [1, None]}},
        {"sentence1": "bird", "sentence2": "a", "more": 2**60 + 1},
    ]
    file = Path(write_rows(tmp_path / "c.jsonl", values))
    for row, own in zip(predict(classifier.run, file, tmp_path / "d.jsonl"), values, strict=True):
        assert list(row) == [*own, "prediction", "probability"]
        assert {name: row[name] for name in own} == own


@pytest.mark.parametrize("kinds", [("jsonl", "csv"), ("csv", "tsv"), ("csv", "parquet"),
                                   ("parquet", "jsonl"), ("parquet", "parquet")])  # fmt: skip
def test_every_kind_of_file(
    classifier: Trained, asked: Path, tmp_path: Path, kinds: tuple[str, str]
) -> None:
    first = tmp_path / f"first.{kinds[0]}"
    known = predict(classifier.run, asked, first)
    out = tmp_path / f"second.{kinds[1]}"
    assert run(["predict", str(classifier.run), str(first), "-o", str(out), "--prefix", "my_"]) == 0
    text = out.read_text().replace("\t", ",") if kinds[1] == "tsv" else ""
    rows = list(csv.DictReader(io.StringIO(text))) if text else read(out)
    assert len(rows) == len(known) == 24
    for row, before in zip(rows, known, strict=True):
        assert str(row["my_prediction"]) == before["prediction"] == str(row["prediction"])
        assert float(row["my_probability"]) == pytest.approx(float(before["probability"]), abs=1e-6)
        assert row["sentence1"] == before["sentence1"]


@pytest.mark.long
def test_a_stream(classifier: Trained, asked: Path, tmp_path: Path) -> None:
    environment = {**warm.ENVIRONMENT, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [warm.python(), "-m", "sora_cli", "predict", str(classifier.run), "-", "-o", "-"],
        input=asked.read_bytes(), capture_output=True, check=True, cwd=tmp_path,
        env=environment,
    )  # fmt: skip
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert rows == predict(classifier.run, asked, tmp_path / "same.jsonl")


def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are answered five at a time."""
    inner = predictor.Predictor.__init__

    def made(self: Any, asked: Any, source: Any) -> None:
        inner(self, asked, source)
        self.size = 5

    monkeypatch.setattr(predictor.Predictor, "__init__", made)


def stop_at(monkeypatch: pytest.MonkeyPatch, part: int, stop: Callable[[], object]) -> list[int]:
    """Something happens before that part is answered; the parts' first rows are noted."""
    inner, begun = predictor.Predictor._answers, list[int]()

    def answers(self: Any, trainer: Any, base: Any, start: int, end: int) -> Any:
        begun.append(start)
        if len(begun) == part:
            stop()
        return inner(self, trainer, base, start, end)

    monkeypatch.setattr(predictor.Predictor, "_answers", answers)
    return begun


@pytest.mark.parametrize("kind", ["csv", pytest.param("parquet", marks=pytest.mark.long)])
def test_an_interrupted_call_goes_on(
    classifier: Trained, asked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    small_parts(monkeypatch)
    whole = tmp_path / f"whole.{kind}"
    predict(classifier.run, asked, whole)
    out = tmp_path / f"out.{kind}"
    words = ["predict", str(classifier.run), str(asked), "-o", str(out)]
    out.write_text("an older output")

    def interrupt() -> NoReturn:
        raise Interrupted(signal.SIGINT)

    with monkeypatch.context() as patched:
        stop_at(patched, 3, interrupt)
        assert run([*words, "--force"]) == 130
    moved = f"once {out} is moved away, the same command, without --force, continues from there"
    assert moved in capsys.readouterr().err
    out.unlink()
    assert sorted(p.name for p in Path(f"{out}.unfinished").iterdir()) == ["0", "1", "record.json"]
    with monkeypatch.context() as patched:
        begun = stop_at(patched, 99, lambda: None)
        capsys.readouterr()
        assert run(words) == 0
    assert begun == [10, 15, 20]
    assert "10 of 24 rows are done: continuing from there" in capsys.readouterr().err
    assert out.read_bytes() == whole.read_bytes()
    assert not Path(f"{out}.unfinished").exists()


def test_answers_that_cannot_be_joined_leave_the_output_as_it_was(
    classifier: Trained, asked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.csv"
    out.write_text("before")

    def torn(_self: Any, _parts: Any, file: Path, _answers: Any) -> None:
        file.write_text("half")
        raise OSError(28, "no space left")

    monkeypatch.setattr(formats.Format, "join", torn)
    assert run(["predict", str(classifier.run), str(asked), "-o", str(out), "--force"])
    assert out.read_text() == "before"
    assert not [path for path in tmp_path.iterdir() if path.is_file() and path != out]


@pytest.mark.long
def test_what_changed_is_not_gone_on_with(
    classifier: Trained, asked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    small_parts(monkeypatch)
    model, file = tmp_path / "model", tmp_path / "asked.jsonl"
    shutil.copytree(classifier.run / "adapter", model)
    lines = asked.read_text().splitlines(keepends=True)
    words = ["predict", str(model), str(file), "-o", str(tmp_path / "out.jsonl")]

    file.write_text("".join([*lines[:12], '{"sentence1": "cat"}\n', *lines[13:]]))
    refused(capsys, *words)  # it is found before anything is answered
    assert not (tmp_path / "out.jsonl.unfinished").exists()
    file.write_text("".join(lines))
    with monkeypatch.context() as patched:
        stop_at(patched, 3, lambda: signal.raise_signal(signal.SIGINT))
        assert run(words) == 130
    refused(capsys, *words, "training.precision=bf16")
    refused(capsys, *words, "--prefix", "x_")
    file.write_text("".join(['{"sentence1": "red", "sentence2": "red"}\n', *lines[1:]]))
    refused(capsys, *words)
    file.write_text("".join([*lines[:15], '{"sentence1": "red", "sentence2": "red"}\n']))
    config = json.loads((model / "adapter_config.json").read_text())
    (model / "adapter_config.json").write_text(json.dumps({**config, "lora_dropout": 0.5}))
    refused(capsys, *words, hide="sha256:[0-9a-f]+")  # of weights, which rounding changes
    (model / "adapter_config.json").write_text(json.dumps(config))
    assert run(words) == 0  # rows after those that are done may change
    assert len(read(tmp_path / "out.jsonl")) == 16
    assert run([*words]) == 2  # it is there
    assert run([*words, "--force"]) == 0


def test_columns_are_those_it_was_trained_on(
    classifier: Trained, asked: Path, tmp_path: Path
) -> None:
    """Other columns with names that are looked for first play no part."""
    rows = [{**row, "label": "?", "premise": "x", "text": 3} for row in ASKED]
    file = Path(write_rows(tmp_path / "more.jsonl", rows))
    given = predict(classifier.run, file, tmp_path / "out.jsonl")
    plain = predict(classifier.run, asked, tmp_path / "plain.jsonl")
    assert [r["prediction"] for r in given] == [r["prediction"] for r in plain]
    asked = [{"a": row["sentence1"], "b": row["sentence2"]} for row in ASKED]
    renamed = Path(write_rows(tmp_path / "renamed.jsonl", asked))
    given = predict(
        classifier.run, renamed, tmp_path / "other.jsonl", "data.text_columns=[a, b]"
    )  # fmt: skip
    assert [r["prediction"] for r in given] == [r["prediction"] for r in plain]


@pytest.mark.long
def test_numbers(regressor: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own_rows = pair_rows(24, seed=1, regression=True)
    asked = Path(write_rows(tmp_path / "asked.jsonl", own_rows))
    capsys.readouterr()
    rows = predict(regressor.run, asked, tmp_path / "out.jsonl", "--json")
    summary = json.loads(capsys.readouterr().out)
    assert summary["rows"] == 24
    assert (summary["task"], summary["adds"]) == ("sequence-regression", ["prediction"])
    errors = [
        (row["prediction"] - own["label"]) ** 2 for row, own in zip(rows, own_rows, strict=True)
    ]
    loss = regressor.report.metrics["validation"]["loss"]
    assert sum(errors) / len(errors) == pytest.approx(loss, rel=1e-5)


def test_rows_that_are_answered_are_let_go(
    classifier: Trained, asked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else memory would grow with the file: the trainer's accelerator keeps what it prepares."""
    small_parts(monkeypatch)
    rows, inner, left = list[weakref.ref[Any]](), AdapterTrainer.answers_of, list[int]()

    def answers_of(self: Any, encoded: Any) -> Any:
        gc.collect()
        left.append(sum(known() is not None for known in rows))
        rows.append(weakref.ref(encoded.dataset))
        return inner(self, encoded)

    monkeypatch.setattr(AdapterTrainer, "answers_of", answers_of)
    predict(classifier.run, asked, tmp_path / "out.jsonl")
    assert len(left) == 5
    assert max(left) <= 1


@pytest.mark.long
def test_a_chat_is_answered_after_its_last_question(tmp_path: Path) -> None:
    """With an answer of its own or without, under any names of the keys."""
    _, model = whole_model(tmp_path, "causal-lm")
    asked = [{"from": "human", "value": "cat sees dog"}]
    answer = {"from": "gpt", "value": "bird"}
    lines = [{"conversations": asked}, {"conversations": [*asked, answer]}]
    plain = {"instruction": "cat sees dog"}
    made = []
    for name, rows in {"chats": lines, "plain": [plain, plain]}.items():
        file, out = tmp_path / f"{name}.jsonl", tmp_path / f"{name}-out.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        words = ["--task", "causal-lm", "task.max_new_tokens=5"]
        assert run(["predict", str(model), str(file), "-o", str(out), *words]) == 0
        made.append([json.loads(line) for line in out.read_text().splitlines()])
    chats, others = made
    assert [row["conversations"] for row in chats] == [row["conversations"] for row in lines]
    assert len({row["prediction"] for row in (*chats, *others)}) == 1


def test_a_text_is_gone_on_with(tmp_path: Path) -> None:
    _, model = whole_model(tmp_path, "causal-lm")
    (tmp_path / "texts.jsonl").write_text('{"text": "cat sees dog"}\n')
    out = tmp_path / "out.jsonl"
    words = ["task.max_new_tokens=4", "--task", "causal-lm"]
    assert run(["predict", str(model), str(tmp_path / "texts.jsonl"), "-o", str(out), *words]) == 0
    tokenizer = AutoTokenizer.from_pretrained(model)
    loaded = AutoModelForCausalLM.from_pretrained(model)
    ids = torch.tensor([tokenizer("cat sees dog")["input_ids"]])
    given = loaded.generate(ids, max_new_tokens=4, do_sample=False)[0, ids.shape[1] :]
    assert json.loads(out.read_text())["prediction"] == tokenizer.decode(
        given, skip_special_tokens=True
    ).strip()  # fmt: skip


@pytest.mark.long
def test_rows_that_are_to_be_answered_need_their_inputs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, model = whole_model(tmp_path, "multiple-choice")
    (tmp_path / "a.jsonl").write_text('{"context": "cat"}\n')
    out = tmp_path / "o.jsonl"
    refused(capsys, "predict", model, tmp_path / "a.jsonl", "-o", out)


def test_ends_of_lines_stay(classifier: Trained, tmp_path: Path) -> None:
    table, out = tmp_path / "a.csv", tmp_path / "b.csv"
    table.write_bytes(b"sentence1,sentence2\r\ncat,dog\r\n")
    predict(classifier.run, table, out)
    assert out.read_bytes().count(b"\r\n") == 2 == out.read_bytes().count(b"\n")
    lines = tmp_path / "c.jsonl"
    lines.write_bytes(b'{"sentence1": "cat", "sentence2": "dog"}\r\n')
    predict(classifier.run, lines, tmp_path / "d.jsonl")
    assert (tmp_path / "d.jsonl").read_bytes().endswith(b"}\r\n")


def test_the_columns_that_are_listed_are_the_files(
    classifier: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A stand-in for the label is not one of them."""
    table = tmp_path / "a.csv"
    table.write_text("title\nx\n")
    refused(capsys, "predict", classifier.run, table, "-o", tmp_path / "b.csv")


@pytest.mark.parametrize(
    "given",
    [
        b"",
        b'{"sentence1": \n',
        b"{}\n[]\n",
    ],
)
def test_stdin_is_called_that(
    classifier: Trained,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    given: bytes,
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(given)))
    refused(capsys, "predict", classifier.run, "-", "-o", "-")


def test_excels_exports_are_answered_and_told(
    classifier: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = [["sentence1", "sentence2"], ["die Tür", "cat"], ["schön", "dog"]]
    path = write_excel(tmp_path, "title", table)
    assert run(["predict", str(classifier.run), str(path), "-o", f"{tmp_path}/out.csv"]) == 0
    assert "the header is taken from below the title" in capsys.readouterr().err
    written = (tmp_path / "out.csv").read_text(encoding="cp1252").splitlines()
    assert [line.split(";")[0] for line in written] == ["sentence1", "die Tür", "schön"]
    rows = predict(classifier.run, path, tmp_path / "out.jsonl")  # JSON is UTF-8
    assert [row["sentence1"] for row in rows] == ["die Tür", "schön"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252", "utf-16"])
def test_a_table_keeps_its_encoding(
    classifier: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str], encoding: str
) -> None:
    """Of a letter that it lacks, the output is UTF-8 as Excel reads it, and a note says so."""
    table, out = tmp_path / "in.csv", tmp_path / "out.csv"
    table.write_bytes("sentence1;sentence2\r\ndie Tür;größer\r\nschön;cat\r\n".encode(encoding))
    words = ["predict", str(classifier.run), str(table), "-o"]
    assert run([*words, str(out)]) == 0
    first, *lines = out.read_bytes().decode(encoding).split("\r\n")
    assert first == "sentence1;sentence2;prediction;probability"
    assert [line.rsplit(";", 2)[0] for line in lines] == ["die Tür;größer", "schön;cat", ""]
    assert "byte order mark" not in capsys.readouterr().err
    assert run([*words, str(out), "--force", "--prefix", "→"]) == 0
    lacks = encoding == "cp1252"
    text = out.read_bytes().decode("utf-8" if lacks else encoding)
    assert text.startswith("\ufeff" * lacks + "sentence1;sentence2;→prediction;")
    notes = [line for line in capsys.readouterr().err.splitlines() if "byte order mark" in line]
    assert [note.partition("out.csv: ")[2] for note in notes] == lacks * [
        "written as UTF-8 with a byte order mark: cp1252, the encoding of the input, has no '→'"
    ]
