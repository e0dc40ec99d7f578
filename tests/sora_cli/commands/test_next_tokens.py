"""`--next-tokens`: the promise of `--max-differ` about next-token choices on given texts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers

from sora_cli.adapter.reading import read_adapter
from sora_cli.app import run
from sora_cli.core.exit_codes import FAILED, NO_VERDICT, OK
from tests.helpers_chat import chat_tokenizer, instruct_rows, write_chat_base, write_chat_recipe
from tests.helpers_errors import refused
from tests.helpers_runs import write_rows
from tests.sora_cli.commands.test_prune_answers import theirs
from tests.sora_cli.experiments.auto.support import certificate_of

ROWS = [
    {**row, "instruction": f"{row['instruction']} {n}"}
    for n, row in enumerate(instruct_rows(80, seed=3))
]
SHARE = "95%"


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_rows(tmp_path_factory.mktemp("rows") / "given.jsonl", ROWS)


def best(model: Any, row: dict[str, Any]) -> list[int]:
    """The likeliest token at each place of a row's answer, by the model alone."""
    tokenizer = chat_tokenizer()
    turn = [{"role": "user", "content": row["instruction"]}]
    prompt = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    asked, answer = (tokenizer(text)["input_ids"] for text in (prompt, row["output"]))
    ids = [*asked, *answer, tokenizer.eos_token_id]
    logits = model.eval()(input_ids=torch.tensor([ids])).logits[0]
    tokens: list[int] = logits[len(asked) - 1 : -1].argmax(-1).tolist()
    return tokens


def test_anybodys_adapter_is_pruned_by_its_next_tokens(
    given: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_chat_base(tmp_path / "base")
    adapter, out = theirs(tmp_path, "AutoModelForCausalLM", "CAUSAL_LM"), tmp_path / "out"
    monkeypatch.setattr("sora_cli.tasks.causal_lm.generate_texts", None)  # nothing is written
    words = ["--max-differ", SHARE, "--unlabelled", given, "--next-tokens"]
    assert run(["prune", str(adapter), "-o", str(out), *words]) == OK
    told = capsys.readouterr()
    assert (
        f"{given}: next-token choices on the columns 'instruction', 'output' are compared"
        in told.err
    )
    assert "ignored" not in told.err
    assert "at most 95 % of the rows differ in a next-token choice, with 95%" in told.err
    assert (
        "at most 95 % of the rows differ in a next-token choice from the uncut adapter's"
        in told.out
    )
    (entry,) = read_adapter(out).meta.lineage
    assert (entry["max_differ"], entry["certified"]) == (0.95, True)
    assert certificate_of(out).promise.next_tokens
    assert entry["components"][1] < entry["components"][0]
    models = []
    for place in (adapter, out):
        base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
        models.append(peft.PeftModel.from_pretrained(base, str(place)))
    differing = sum(best(models[0], row) != best(models[1], row) for row in ROWS)
    found = certificate_of(out)
    assert found.rows["test"].rows < (found.rows["test"].held or 0) == len(ROWS)  # read alike
    assert found.written is not None
    assert found.written.test is not None
    assert differing == round((found.written.test.every or 0) * len(ROWS))
    assert 0 < differing < len(ROWS)
    assert run(["inspect", str(out)]) == OK
    assert "differ in a next-token choice" in capsys.readouterr().out


def test_overrides_are_those_that_next_tokens_read(
    given: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_chat_base(tmp_path / "base")
    adapter = theirs(tmp_path, "AutoModelForCausalLM", "CAUSAL_LM")
    words = ["--max-differ", SHARE, "--unlabelled", given, "--next-tokens"]
    command = ["prune", adapter, "-o", tmp_path / "out", *words]
    refused(capsys, *command, "task.max_new_tokens=4")
    lone = write_rows(tmp_path / "lone.jsonl", [{"instruction": "the cat"}] * 3)
    refused(capsys, *[lone if word == given else word for word in command])


def command(recipe: Path, rows: str, out: Path) -> list[str]:
    words = ["--max-differ", "70%", "--unlabelled", rows, "--next-tokens", "--no-verify"]
    return ["auto", str(recipe), *words, f"output.dir={out}"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    return write_chat_recipe(folder, rows=80, training={"learning_rate": 0.02})


@pytest.fixture(scope="module")
def done(recipe: Path, given: str) -> Path:
    out = recipe.parent / "done"
    assert run(command(recipe, given, out)) in (OK, NO_VERDICT)
    return out


def test_the_certificate_says_which_answers_were_compared(
    done: Path, recipe: Path, given: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = certificate_of(done)
    assert (found.promise.kind, found.promise.next_tokens) == ("differ", True)
    assert "differ in a next-token choice from those at full rank" in found.statement
    assert found.scope.startswith("the next-token choices on given texts (a row differs if any")
    assert "not the written texts" in found.scope
    assert found.rows["test"].held == 60
    card = (done / "adapter" / "README.md").read_text(encoding="utf-8")
    assert "next-token choices" in card
    assert run(["verify", str(done), "--certificate", "--json"]) == OK
    facts = json.loads(capsys.readouterr().out)
    assert facts["verdict"] == "same"
    for one in facts["compared"]:
        assert one["stored"] == pytest.approx(one["here"], abs=max(one["apart"], 1e-6)), one
    assert run([*command(recipe, given, done.parent / "new"), "--dry-run"]) == OK
    told = capsys.readouterr().out
    assert "promise: at most 70 % of the rows differ in a next-token choice, with 95%" in told


@pytest.mark.parametrize("how", ["another", "none"])
def test_a_certificate_that_names_other_answers_is_refused(
    done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    copy = shutil.copytree(done, tmp_path / "copy")
    file = copy / "certificate.json"
    document = json.loads(file.read_text(encoding="utf-8"))
    del document["promise"]["next_tokens"]
    if how == "another":
        document["promise"]["next_tokens"] = False
    file.write_text(json.dumps(document), encoding="utf-8")
    assert run(["verify", str(copy), "--certificate"]) == FAILED
    told = capsys.readouterr().out
    assert "promise.next_tokens: false in the certificate, but it should be true" in told
    # the run's recipe beside it says the same: then other columns of the rows are read
    report = copy / "report.json"
    text = report.read_text(encoding="utf-8")
    assert '"next_tokens": true' in text
    report.write_text(text.replace('"next_tokens": true', '"next_tokens": false'), encoding="utf-8")
    assert run(["verify", str(copy), "--certificate"]) == FAILED
    assert "the test rows are not those of the certificate" in capsys.readouterr().out


def test_other_answers_in_the_file_are_other_rows(
    done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_rows(tmp_path / "other.jsonl", [{**row, "output": "no"} for row in ROWS])
    assert run(["verify", str(done), "--certificate", f"auto.unlabelled={other}"]) == FAILED
    assert "the test rows are not those of the certificate" in capsys.readouterr().out
