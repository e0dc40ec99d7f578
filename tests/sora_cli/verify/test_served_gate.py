"""A gate between an adapter and a server: `sora verify A --server URL --max-differ 5%`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers

from sora_cli.app import run
from sora_cli.core.exit_codes import FAILED, NO_VERDICT, OK
from sora_cli.tasks.language import generate_texts
from tests.helpers_chat import instruct_rows, write_chat_recipe
from tests.helpers_errors import refused
from tests.helpers_runs import train, write_rows
from tests.sora_cli.verify.test_server import Answer, models, plain, serving

Output = pytest.CaptureFixture[str]


class Writer:
    """A server of one model.

    Args:
        ids: it takes prompts as ids; else as texts only.
        moods: it answers each prompt otherwise when it is asked again.
    """

    def __init__(self, place: Path, *, ids: bool = True, moods: bool = False) -> None:
        self.model = transformers.AutoModelForCausalLM.from_pretrained(place)
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(place)
        self.ids, self.moods, self.asked = ids, moods, list[Any]()

    def __call__(self, path: str, body: Any) -> Answer:
        if path == "/v1/models":
            return models("tiny")
        prompt = body["prompt"]
        if isinstance(prompt, list) is not self.ids or path != "/v1/completions":
            return plain({"error": {"message": "not so"}}, 400)
        if not self.ids:
            prompt = self.tokenizer(prompt, add_special_tokens=False).input_ids
        (text,) = generate_texts(
            self.model, self.tokenizer, [prompt], batch=1, new=body["max_tokens"]
        )
        again = prompt in self.asked
        self.asked += [prompt] * (body["max_tokens"] > 1)
        return plain({"choices": [{"text": f" {text}{' again' * (self.moods and again)}\n"}]})


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written")
    recipe = write_chat_recipe(
        folder, rows=64, training={"learning_rate": 0.05, "epochs": 6},
        task={"metrics": ["exact_match"]},
    )  # fmt: skip
    train(recipe)
    assert run(["merge", str(folder / "out"), "-o", str(folder / "merged")]) == OK
    write_rows(folder / "new.jsonl", instruct_rows(40, seed=5))
    return folder


def answers(folder: Path) -> list[str]:
    return ["verify", str(folder / "out"), "--max-differ", "20%",
            "--unlabelled", str(folder / "new.jsonl")]  # fmt: skip


@pytest.mark.long
def test_prompts_that_are_read_as_texts_may_be_others(trained: Path, capsys: Output) -> None:
    """The tiny tokenizer writes words without the spaces between them."""
    with serving(Writer(trained / "merged", ids=False)) as (url, _):
        assert run([*answers(trained), "--server", url]) in (FAILED, NO_VERDICT)
    told = capsys.readouterr().err
    assert "the server takes prompts as texts only" in told
    assert "40 of 40 are other tokens" in told


@pytest.mark.long
def test_a_server_with_the_adapter_answers_as_it_does(trained: Path, capsys: Output) -> None:
    with serving(Writer(trained / "merged")) as (url, _):
        assert run([*answers(trained), "--server", url, "--json"]) == OK
    out, err = capsys.readouterr()
    found = json.loads(out)
    (b,) = found["candidates"]
    assert b["test"]["differing"] == 0
    assert b["directory"] == f"{url}, model tiny"
    assert "asked twice, the server answers 0 of" in err


@pytest.mark.long
def test_a_server_with_its_bare_base_does_not(trained: Path, capsys: Output) -> None:
    with serving(Writer(trained / "base", moods=True)) as (url, _):
        assert run([*answers(trained), "--server", url]) == FAILED
    out, err = capsys.readouterr()
    assert "more than 20 % of the answers differ from A's" in out
    asked = err.split("asked twice, the server answers ")[1].split(" rows")[0]
    assert len({*asked.split(" of ")}) == 1, asked  # all of them


@pytest.mark.long
def test_exact_match_on_labelled_rows(trained: Path, capsys: Output) -> None:
    words = ["verify", str(trained / "out"), "--max-drop", "50pt"]
    with serving(Writer(trained / "merged")) as (url, _):
        assert run([*words, "--server", url, "--json"]) in (OK, NO_VERDICT)
        found = json.loads(capsys.readouterr().out)
        assert found["promise"]["metric"] == "exact_match"
        assert found["candidates"][0]["test"]["drop"] == 0
        hidden = f"{url}|/tmp[^ ]*"
        refused(capsys, *words, "task.metrics=[rougeL]", "--server", url, hide=hidden)
        refused(capsys, *words, "--server", url, "--ask", "ask.csv", hide=hidden)
        refused(capsys, *words, "--server", url, "--model", "other", hide=hidden)
