"""`sora prune --max-differ`: anybody's adapter, cut as far as its answers stay the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers

from sora_cli.adapter.reading import read_adapter
from sora_cli.app import run
from sora_cli.core.exit_codes import NO_VERDICT, OK
from sora_cli.core.markdown import escaped
from tests.helpers_chat import instruct_rows, write_chat_base
from tests.helpers_errors import refused
from tests.helpers_models import tiny_bert
from tests.helpers_runs import pair_rows, save_base, write_rows
from tests.sora_cli.experiments.auto.support import certificate_of

ROWS = 80


def theirs(folder: Path, auto: str, task: str, **options: Any) -> Path:
    """An adapter as PEFT writes it, with a random update, of the base model in `folder`."""
    torch.manual_seed(0)
    model = getattr(transformers, auto).from_pretrained(folder / "base", **options)
    targets = ["q_proj", "v_proj"] if task == "CAUSAL_LM" else ["query", "value"]
    config = peft.LoraConfig(task_type=task, r=4, target_modules=targets, init_lora_weights=False)
    peft.get_peft_model(model, config).save_pretrained(folder / "theirs")
    assert not (folder / "theirs" / "sora.json").exists()
    return folder / "theirs"


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classifier")
    save_base(tiny_bert(num_labels=2), folder / "base")
    rows = [{"text": row["sentence1"]} for row in pair_rows(2 * ROWS)]
    texts = list({row["text"]: row for row in rows}.values())[:ROWS]
    write_rows(folder / "texts.jsonl", texts)
    return theirs(folder, "AutoModelForSequenceClassification", "SEQ_CLS", num_labels=2)


def entry_of(out: Path) -> dict[str, Any]:
    (entry,) = read_adapter(out).meta.lineage
    return entry


def answers_of(place: Path, rows: Path, out: Path) -> list[Any]:
    assert run(["predict", str(place), str(rows), "-o", str(out), "--force"]) == OK
    return [json.loads(line)["prediction"] for line in out.read_text().splitlines()]


def test_nothing_but_texts(
    classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, texts = tmp_path / "out", classifier.parent / "texts.jsonl"
    command = ["prune", str(classifier), "-o", str(out), "--max-differ", "8%"]
    assert run([*command, "--unlabelled", str(texts)]) == OK
    told = capsys.readouterr()
    assert f"{texts}: answers to the column 'text' are compared" in told.err
    assert "at most 8 % of the answers differ, with 95% confidence; certified if" in told.err
    assert f"agreement on {ROWS} unlabelled rows" in told.out
    entry, found = entry_of(out), certificate_of(out)
    assert entry["max_differ"] == 0.08
    assert (entry["certified"], found.bound.exact, found.rows["test"].rows) == (True, True, ROWS)
    assert found.written is not None
    assert found.written.test is not None
    drop = found.written.test.drop
    assert drop <= found.written.test.upper <= 0.08
    kept = entry["components"][1]
    assert kept < entry["components"][0]
    assert f"certified: {found.statement}" in told.out
    assert "at most 8 % of the answers differ" in found.statement
    assert "accuracy" not in told.out
    capsys.readouterr()
    before, after = (answers_of(place, texts, tmp_path / "a.jsonl") for place in (classifier, out))
    differing = sum(a != b for a, b in zip(before, after, strict=True))
    assert differing == round(drop * ROWS)
    assert "rule: --max-differ 8%: " in told.out
    step = f"prune: max differ 8%, components {entry['components'][0]} -> {kept}, parameters "
    assert f"| After training | {escaped(step)}" in (out / "README.md").read_text(encoding="utf-8")
    assert run(["inspect", str(out)]) == OK
    inspected = " ".join(capsys.readouterr().out.split())
    assert step in inspected
    assert found.statement in inspected


def test_too_few_rows_are_told_before_anything_is_cut(
    classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["prune", str(classifier), "-o", str(tmp_path / "out"), "--max-differ", "0.1%"]
    command += ["--unlabelled", str(classifier.parent / "texts.jsonl")]
    assert run(command) in (OK, NO_VERDICT)  # OK: nothing smaller answers alike
    told = capsys.readouterr()
    assert f"WARNING: {ROWS} test rows cannot certify this, even if no answer differs" in told.err
    assert "it takes 2,995 at least" in told.err
    found = certificate_of(tmp_path / "out")
    assert all(size.test is None or not size.test.kept for size in found.candidates)


def test_written_texts_are_compared_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_chat_base(tmp_path / "base")
    adapter = theirs(tmp_path, "AutoModelForCausalLM", "CAUSAL_LM")
    rows = [{"instruction": f"{row['instruction']} {n}"} for n, row in enumerate(instruct_rows(20))]
    unlabelled = write_rows(tmp_path / "rows.jsonl", rows)
    out = tmp_path / "out"
    words = ["--max-differ", "50%", "--unlabelled", unlabelled, "task.max_new_tokens=4"]
    code = run(["prune", str(adapter), "-o", str(out), *words])
    told = capsys.readouterr()
    assert code in (OK, NO_VERDICT)
    assert f"{unlabelled}: answers to the column 'instruction' are compared" in told.err
    assert "agreement on 20 unlabelled rows" in told.out


def test_numbers_take_a_tolerance(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_base(tiny_bert(num_labels=1), tmp_path / "base")
    adapter = theirs(tmp_path, "AutoModelForSequenceClassification", "SEQ_CLS", num_labels=1)
    unlabelled = write_rows(
        tmp_path / "texts.jsonl", [{"text": row["sentence1"]} for row in pair_rows(60)]
    )
    command = ["prune", str(adapter), "-o", str(tmp_path / "out"), "--max-differ", "30%"]
    command += ["--unlabelled", unlabelled]
    refused(capsys, *command)
    assert run([*command, "--tolerance", "0.5"]) in (OK, NO_VERDICT)
    told = capsys.readouterr()
    assert "promise: at most 30 % of the answers differ by more than 0.5, with 95%" in told.err
    assert "of the answers differ by more than 0.5 from the uncut adapter's" in told.out
    assert "nothing records all that" in told.err  # of another program's adapter they are not known
    assert certificate_of(tmp_path / "out").promise.tolerance == 0.5


def test_files_that_do_not_tell_the_family(
    classifier: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sora_cli.use.described.auto_class_for", lambda *_: "AutoModel")
    command = ["prune", str(classifier), "-o", str(tmp_path / "out"), "--max-differ", "50%"]
    command += ["--unlabelled", str(classifier.parent / "texts.jsonl")]
    refused(capsys, *command)
    words = ["task.name=sequence-classification", "data.label_names=[a,b]"]
    assert run([*command, *words]) == OK


def test_a_column_with_another_name_is_named_in_the_hint(
    classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = (classifier.parent / "texts.jsonl").read_text().replace('"text"', '"words"')
    (tmp_path / "words.jsonl").write_text(texts)
    command = ["prune", str(classifier), "-o", str(tmp_path / "out"), "--max-differ", "50%"]
    command += ["--unlabelled", str(tmp_path / "words.jsonl")]
    error = refused(capsys, *command)
    hint = error[-1].removeprefix("name one or two: ")
    assert hint == "data.text_columns=[words]"
    assert run([*command, hint]) == OK


@pytest.mark.parametrize(
    "words",
    [
        ["--max-differ", "1%"],
        ["--max-differ", "1%", "--unlabelled", "none.csv"],
        ["--max-differ", "1%", "--unlabelled", "."],
        ["--max-differ", "1pt", "--unlabelled", "T"],
        ["--max-differ", "1%", "--unlabelled", "T", "--rank", "2"],
        ["--max-differ", "1%", "--unlabelled", "T", "--max-drop", "1pt"],
        ["--max-drop", "1pt", "--unlabelled", "T"],
        ["--rank", "2", "--tolerance", "1"],
        ["--max-differ", "1%", "--unlabelled", "T", "--tolerance", "1"],
        ["--max-differ", "1%", "--unlabelled", "T", "--tolerance", "inf"],
        ["--max-differ", "1%", "--unlabelled", "T", "data.text_columns=[x]"],
    ],
    ids=" ".join,
)
def test_what_is_no_promise(
    classifier: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)  # a message names files that lie near
    texts = str(classifier.parent / "texts.jsonl")
    given = [texts if word == "T" else word for word in words]
    refused(capsys, "prune", classifier, "-o", tmp_path / "out", *given)
    assert not (tmp_path / "out").exists()
