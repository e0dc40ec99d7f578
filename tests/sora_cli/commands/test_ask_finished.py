"""`--ask` of `sora prune` and `sora extract`, and the gate of `sora verify A B`."""

from __future__ import annotations

import json
import shutil
import stat
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from sora_cli.app import run
from sora_cli.core.exit_codes import FAILED, LABELS_WANTED, NO_VERDICT, OK
from sora_cli.search.evidence import Evidence
from sora_cli.search.kept_answers import FILE_NAME, Kept
from tests.helpers_asking import Row, fill, rows_of, truth
from tests.helpers_errors import refused
from tests.helpers_runs import copied_here, train
from tests.present import present
from tests.sora_cli.commands.test_auto_ask import small
from tests.sora_cli.experiments.auto.support import certificate_of

Output = pytest.CaptureFixture[str]
ROWS = ["--unlabelled", "inputs.jsonl"]
FINISHED = {
    "prune": ["prune", "run", "-o", "out"],
    "rounded": ["prune", "run", "-o", "out", "--bits", "4", "--head-bits", "8"],
    "heal": ["prune", "run", "-o", "out", "--heal", "4", "training.batch_size=16"],
    "extract": ["extract", "whole", "--base", "base", "-o", "out"],
}


def finish(words: list[str]) -> int:
    """Fill in the truth, size by size, until no label is wanted; return the exit code."""
    while (code := run(words)) == LABELS_WANTED:
        fill(Path("ask.csv"), truth)
    return code


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an adapter, a whole model, and rows without labels; nobody writes into it."""
    folder = tmp_path_factory.mktemp("finished")
    recipe = small(folder)
    with chdir(folder):
        train(recipe, "auto=null", "output.dir=run")
        train(recipe, "auto=null", "method.name=full", "output.dir=whole")
        adapter = Path("flipped/adapter_model.safetensors")
        shutil.copytree("run/adapter", adapter.parent)
        tensors = load_file(adapter)
        # the classes exchanged: every answer is the other one
        turned = {k: t.flip(0).clone() if "classifier" in k else t for k, t in tensors.items()}
        save_file(turned, adapter, {"format": "pt"})
    return folder


@pytest.fixture
def here(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return copied_here(trained, tmp_path, monkeypatch)


@pytest.mark.long
@pytest.mark.parametrize("words", FINISHED.values(), ids=FINISHED)
def test_a_finished_adapter_asks_for_labels_and_is_checked_again(
    here: Path, words: list[str], capsys: Output
) -> None:
    words = [*words, "--max-drop", "30pt", *ROWS, "--ask", "ask.csv"]
    assert run(words) == LABELS_WANTED
    assert not (here / "out" / "certificate.json").exists()
    memory = Kept.beside(here / "ask.csv")
    assert {stat.S_IMODE(path.stat().st_mode) for path in (memory.path, here / "ask.csv")} == {
        0o600
    }
    told = capsys.readouterr().err
    assert "wanted: fill in the column 'label' of ask.csv" in told
    assert finish(words) in (OK, NO_VERDICT)
    found = certificate_of(here / "out")
    assert found.asked is not None
    assert found.asked.answered == found.asked.wanted == len(rows_of(here / "ask.csv"))
    assert found.promise.basis == "asked"
    assert "screening" in found.rows
    texts = {row["sentence1"] for row in rows_of(here / "ask.csv")}
    for name in ("certificate.json", FILE_NAME):
        assert not [text for text in texts if text in (here / "out" / name).read_text()]
    assert run(["verify", "out", "--certificate"]) == OK
    kept = Kept.of(here / "out")
    turned = {key: (str(1 - int(a)), b) for key, (a, b) in kept.answers().items()}
    kept.keep_answers(turned)
    assert run(["verify", "out", "--certificate"]) == FAILED


@pytest.mark.long
def test_a_memory_of_an_earlier_version_goes_on(here: Path) -> None:
    """It asked for the labels of all sizes at once."""
    words = [*FINISHED["prune"], "--max-drop", "30pt", *ROWS, "--ask", "ask.csv"]
    assert run([*words, "--ask-all"]) == LABELS_WANTED
    memory = Kept.beside(here / "ask.csv").path
    old = json.loads(memory.read_text())
    assert old.pop("by_size") is False
    memory.write_text(json.dumps(old))
    fill(here / "ask.csv", truth)
    assert run(words) in (OK, NO_VERDICT)
    assert not present(certificate_of(here / "out").asked).by_size
    certificate, kept = here / "out" / "certificate.json", Kept.of(here / "out").path
    document = json.loads(certificate.read_text())
    for part, key in (("asked", "by_size"), ("promise", "ask_all")):
        document[part].pop(key)
    certificate.write_text(json.dumps(document))
    kept.write_text(json.dumps({k: v for k, v in json.loads(kept.read_text()).items()
                                if k != "by_size"}))  # fmt: skip
    assert run(["verify", "out", "--certificate"]) == OK


@pytest.mark.long
def test_another_promise_changed_labels_and_what_is_pushed(here: Path, capsys: Output) -> None:
    words = [*FINISHED["prune"], *ROWS, "--ask", "ask.csv"]
    assert run([*words, "--max-drop", "30pt"]) == LABELS_WANTED
    refused(capsys, *words, "--max-drop", "25pt")
    refused(capsys, *words, "--max-drop", "30pt", "--bits", "4")
    assert finish([*words, "--max-drop", "30pt"]) in (OK, NO_VERDICT)
    fill(here / "ask.csv", lambda row: str(1 - int(truth(row))), 1)
    lines = refused(capsys, *words[:2], "-o", "other", *words[4:], "--max-drop", "30pt",
                    hide="[bcdfghjkmnpqrstvwxz]{10}")  # fmt: skip
    assert "1 label was changed in ask.csv" in lines[0]
    assert run([*words, "--max-drop", "30pt", "--force"]) in (OK, NO_VERDICT)
    found = certificate_of(here / "out")
    assert found.statement.startswith("a label was changed after it had been read")
    assert not found.certified
    assert run([*words, "--max-drop", "30pt", "--force"]) in (OK, NO_VERDICT)
    assert not certificate_of(here / "out").certified  # it is remembered
    capsys.readouterr()
    assert run(["push", "out", "me/it", "--dry-run", "--base-id", "me/base", "--json"]) == OK
    assert FILE_NAME not in json.loads(capsys.readouterr().out)["files"]


@pytest.fixture
def answers(here: Path) -> Callable[[Row], str]:
    """The answer of the adapter to a row."""
    assert run(["predict", "run", "inputs.jsonl", "-o", "answers.jsonl"]) == OK
    lines = map(json.loads, (here / "answers.jsonl").read_text().splitlines())
    known = {(row["sentence1"], row["sentence2"]): str(row["prediction"]) for row in lines}
    return lambda row: known[row["sentence1"], row["sentence2"]]


@pytest.mark.long
@pytest.mark.parametrize(
    ("right", "code", "words"),
    [(True, FAILED, "B is shown to be worse: with 95% confidence accuracy is more than 0.2 worse"),
     (False, OK, "accuracy is at most 0.2 worse than A's")],
    ids=["worse", "better"],
)  # fmt: skip
def test_labels_tell_which_of_two_models_is_worse(
    here: Path,
    answers: Callable[[Row], str],
    right: bool,
    code: int,
    words: str,
    capsys: Output,
) -> None:
    command = ["verify", "run", "flipped", "--max-drop", "20pt", *ROWS, "--ask", "ask.csv",
               "-o", "gate.json"]  # fmt: skip
    assert run(command) == LABELS_WANTED
    assert not (here / "gate.json").exists()
    fill(here / "ask.csv", lambda row: str(int(answers(row)) ^ (not right)))
    capsys.readouterr()
    assert run(command) == code
    assert words in " ".join(capsys.readouterr().out.split())
    found = Evidence.model_validate_json((here / "gate.json").read_bytes())
    assert (found.command, found.certified, found.worse) == ("verify", code == OK, code == FAILED)
    (b,) = found.candidates
    assert b.test is not None
    assert b.test.lower is not None
    assert b.test.lower <= b.test.drop <= b.test.upper
    refused(capsys, *command)  # the file is there


@pytest.mark.long
@pytest.mark.usefixtures("here")
def test_a_gate_without_labels(capsys: Output) -> None:
    differ = ["verify", "run", "flipped", "--max-differ", "5%", *ROWS]
    assert run(differ) == FAILED
    assert "more than 5 % of the answers differ from A's" in capsys.readouterr().out
    assert run(["verify", "run", "run/adapter", "--max-differ", "5%", *ROWS, "-o", "c.json"]) == OK
    assert run(["verify", "whole", "run", "--max-differ", "95%", *ROWS]) in (OK, FAILED, NO_VERDICT)
    # a row that differs may be won: answers alone show no model to be worse
    assert run(["verify", "run", "flipped", "--max-drop", "5pt", *ROWS]) == NO_VERDICT
    capsys.readouterr()
    assert run(["verify", "run", "run/adapter", "--max-drop", "1pt"]) == OK
    assert "A and B are the same in every file" in capsys.readouterr().out


@pytest.mark.long
@pytest.mark.usefixtures("here")
def test_a_gate_on_the_rows_of_a_run(capsys: Output) -> None:
    """A's own recipe names labelled rows; merged, rounded and packed models are compared, too."""
    assert run(["merge", "run", "-o", "merged"]) == OK
    assert run(["prune", "run", "-o", "rounded", "--bits", "8"]) == OK
    assert run(["export", "rounded", "-o", "packed.safetensors", "--format", "packed"]) == OK
    for other in ("merged", "rounded", "packed.safetensors"):
        capsys.readouterr()
        words = ["verify", "run", other, "--max-drop", "40pt", "--json"]
        assert run(words) == OK
        found = json.loads(capsys.readouterr().out)
        assert found["rows"]["test"]["split"] == "validation"
        assert found["full"]["name"] == "A"
    assert run(["verify", "merged", "run", "--max-drop", "40pt"]) == OK  # the recipe is B's


@pytest.mark.long
def test_other_classes_are_refused_and_other_tokenizers_told(here: Path, capsys: Output) -> None:
    shutil.copytree(here / "flipped", here / "named")
    facts = json.loads((here / "named" / "sora.json").read_text())
    (here / "named" / "sora.json").write_text(json.dumps({**facts, "labels": ["1", "0"]}))
    refused(capsys, "verify", "run", "named", "--max-differ", "5%", *ROWS)
    assert run(["merge", "run", "-o", "merged", "--no-verify"]) == OK
    words = json.loads((here / "merged" / "tokenizer.json").read_text())
    known = words["model"]["vocab"]
    first, last = sorted(known, key=lambda word: known[word])[-2:]
    known[first], known[last] = known[last], known[first]
    (here / "merged" / "tokenizer.json").write_text(json.dumps(words))
    capsys.readouterr()
    assert run(["verify", "run", "merged", "--max-differ", "99%", *ROWS]) in (OK, NO_VERDICT)
    assert "A and B have other tokenizers" in capsys.readouterr().err


def test_what_goes_with_a_gate(trained: Path, capsys: Output) -> None:
    with chdir(trained):
        refused(capsys, "verify", "run", "--max-drop", "1pt")
        refused(capsys, "verify", "run", "flipped", "--ask", "ask.csv")
        refused(capsys, "verify", "run", "flipped", "--max-drop", "1pt", "--dtype", "float64")
        refused(capsys, "verify", "run", "flipped", "--max-drop", "1pt", "--tolerance", "0.1")
        refused(capsys, "verify", "run", "flipped", "--max-drop", "1pt", "--certificate")
        refused(capsys, "verify", "flipped", "base", "--max-drop", "1pt")
        refused(capsys, "verify", "run", "flipped", "--max-drop", "1pt", "--ask", "ask.csv")
        refused(capsys, "verify", "run", "base", "--max-differ", "5%", *ROWS)
        refused(capsys, "verify", "run", "nowhere", "--max-drop", "1pt")
        refused(capsys, "prune", "run", "-o", "out", "--ask", "ask.csv")
