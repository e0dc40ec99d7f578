"""`sora verify --server`: servers of this file, with good answers of every form, and bad ones."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from sora_cli.app import run
from sora_cli.verify import server as client
from sora_cli.verify.served import Served, judge_share, judge_texts
from tests.helpers_errors import error_of
from tests.helpers_models import tiny_llama
from tests.helpers_verify import Made, letter_tokenizer

SECRET = "sk-secret-0123456789"
Answer = tuple[int, dict[str, str], Iterable[bytes]]
Answers = Callable[[str, Any], Answer]
"""From a path and a request's body to a status, headers and the pieces of a body."""


@contextmanager
def serving(answers: Answers) -> Iterator[tuple[str, list[str]]]:
    """Answer at a port of this machine; give its address, and the paths that were asked for."""
    paths: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            paths.append(self.path)
            assert self.headers.get("Authorization") in (None, f"Bearer {SECRET}")
            status, headers, pieces = answers(self.path, json.loads(body or b"null"))
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            try:
                for piece in pieces:
                    self.wfile.write(piece)
            except OSError:
                pass  # the client has left

        do_GET = do_POST = _serve  # noqa: N815 (names of the library's)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads, server.block_on_close = True, False
    thread = threading.Thread(target=server.serve_forever, args=[0.01], daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", paths
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def plain(value: Any, status: int = 200) -> Answer:
    return status, {}, [json.dumps(value).encode()]


def models(*names: str, **more: str) -> Answer:
    return plain({"data": [{"id": name, **more} for name in names]})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A tiny model with an adapter, and a tokenizer with a chat template."""
    made = Made(tmp_path_factory.mktemp("served"), tiny_llama())
    tokenizer = letter_tokenizer()
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    tokenizer.save_pretrained(made.base)
    return made


# good answers


class OpenAI:
    """A server of a model with the letter tokenizer, in one of the forms that servers have."""

    def __init__(self, model: Any, form: str) -> None:
        self.model, self.form, self.tokenizer = model, form, letter_tokenizer()

    @torch.no_grad()
    def __call__(self, path: str, body: Any) -> Answer:
        if path == "/v1/models":
            return models("tiny")
        chat = path == "/v1/chat/completions"
        if chat != (self.form == "chat"):
            return plain({"error": {"message": "no such path"}}, 404)
        if "cache_prompt" in body and self.form != "llama.cpp":
            return plain({"detail": "unexpected fields"}, 422)
        prompt = body["messages"][0]["content"] if chat else body["prompt"]
        if isinstance(prompt, str):
            prompt = self.tokenizer(prompt).input_ids
        elif self.form == "texts":
            return plain({"detail": "prompt must be a string."}, 400)
        scores = self.model(input_ids=torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
        best = scores.topk(5)
        pairs = list(zip(best.indices.tolist(), best.values.tolist(), strict=True))
        text = self.tokenizer.decode([pairs[0][0]])
        if self.form == "texts":
            return plain({"choices": [{"text": text}]})
        if self.form == "vLLM":
            top = {str(self.tokenizer.decode([i])): value for i, value in pairs}
            return plain({"choices": [{"text": text, "logprobs": {"top_logprobs": [top]}}]})
        likely = [{"id": i, "token": "", "logprob": value} for i, value in pairs]
        first = {"token": text, "logprob": pairs[0][1], "top_logprobs": likely}
        choice = {"text": text, "message": {"content": text}, "logprobs": {"content": [first]}}
        return plain({"choices": [choice]})


FORMS = ("llama.cpp", "vLLM", "chat", "texts")


@pytest.fixture(scope="module")
def served(made: Made) -> dict[str, Any]:
    """What a server may have in memory, by the verdict."""
    load = transformers.AutoModelForCausalLM.from_pretrained
    half = load(made.base)
    for own, merged in zip(half.parameters(), load(made.merged).parameters(), strict=True):
        own.data = (own.data + merged.data) / 2
    return {"this adapter": load(made.merged), "the bare base": load(made.base), "neither": half}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("verdict", "code"), [("this adapter", 0), ("the bare base", 1),
                                               ("neither", 1)])  # fmt: skip
def test_verdict(
    made: Made, served: dict[str, Any], form: str, verdict: str, code: int,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    with serving(OpenAI(served[verdict], form)) as (url, _):
        assert run(["verify", str(made.adapter), "--server", f"{url}/v1", "--json"]) == code
    facts = json.loads(capsys.readouterr().out)
    assert facts["verdict"] == verdict
    assert (facts["tokens"] is None) == (form == "texts")
    if form != "texts" and verdict != "neither":
        assert facts["share"] == pytest.approx(1 - code, abs=1e-3)
        assert facts["residual"] < 1e-3


@pytest.mark.parametrize(
    ("share", "residual", "size", "verdict"),
    [  # measured with SmolLM2-135M in llama.cpp, Q4_1, but for the last three
        (0.990, 0.073, 1.61, Served.ADAPTER),
        (0.000, 0.074, 1.37, Served.BASE),
        (1.011, 0.137, 0.68, Served.ADAPTER),  # by chat
        (-0.035, 0.170, 0.49, Served.BASE),
        (0.456, 0.215, 1.36, Served.NEITHER),  # half the strength
        (0.997, 0.217, 1.54, Served.NEITHER),  # the same recipe with another seed
        (0.838, 0.299, 0.78, Served.UNKNOWN),  # the same by chat
        (1.0, 0.5, 0.2, Served.UNKNOWN),  # a small effect, and rounding
        (1.0, 0.0, 0.04, Served.UNKNOWN),
        (0.3, 4.0, 1.5, Served.NEITHER),  # another model
    ],
)
def test_judgement(share: float, residual: float, size: float, verdict: Served) -> None:
    assert judge_share(share, residual, size)[0] is verdict


@pytest.mark.parametrize(
    ("given", "verdict"),
    [("a" * 9 + "x", Served.ADAPTER), ("b" * 10, Served.BASE), ("a" * 8 + "xy", Served.UNKNOWN),
     ("a" * 5 + "b" * 5, Served.NEITHER), ("x" * 10, Served.NEITHER)],
)  # fmt: skip
def test_judgement_of_texts(given: str, verdict: Served) -> None:
    assert judge_texts(given, "a" * 10, "b" * 10).verdict is verdict


def test_nothing_to_tell_apart(
    made: Made, served: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An adapter that hardly changes its base: the server is not even put the texts."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(made.adapter, tmp_path / "weak")
    file = tmp_path / "weak" / "adapter_model.safetensors"
    save_file({n: t * (1e-3 if "lora_B" in n else 1) for n, t in load_file(file).items()}, file)
    with serving(OpenAI(served["the bare base"], "llama.cpp")) as (url, paths):
        assert run(["verify", str(tmp_path / "weak"), "--server", url]) == 3
    assert len(paths) == 2
    out = capsys.readouterr().out
    assert "verdict:    cannot tell" in out
    assert "rounding" in out


def test_another_vocabulary(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    def answers(path: str, _: Any) -> Answer:
        if path == "/v1/models":
            return models("other")
        top = {"\u4e16": -0.1, "\u754c": -2.5}
        return plain({"choices": [{"text": "", "logprobs": {"top_logprobs": [top]}}]})

    with serving(answers) as (url, _):
        assert run(["verify", str(made.adapter), "--server", url]) == 1
    out = capsys.readouterr().out
    assert "not in the base's vocabulary" in out
    assert "verdict:    neither" in out


# the model


def test_the_choice_of_a_model(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    server = ["verify", made.adapter, "--server"]
    with serving(lambda *_: models("base", "lora")) as (url, _):
        lines = error_of(capsys, *server, url)
        assert lines[1:] == ["it lists: base, lora", "--model NAME"]
        lines = error_of(capsys, *server, url, "--model", "lorra")
        assert lines[0].endswith("has no model 'lorra'")
        assert lines[1:] == ["it lists: base, lora", "--model 'lora'"]
        chosen = client.Server(url)
        chosen.choose("lora", made.adapter)
        assert chosen.model == "lora"
    listed = {"data": [{"id": "base", "root": str(made.base)},
                       {"id": "x", "root": str(made.adapter)}]}  # fmt: skip
    with serving(lambda *_: plain(listed)) as (url, _):  # as vLLM lists adapters
        chosen = client.Server(url)
        chosen.choose(None, made.adapter)
        assert chosen.model == "x"


# bad answers


def endless() -> Iterator[bytes]:
    for _ in range(1600):
        yield b"x" * 65_536  # 100 MB


BAD: dict[str, tuple[Answer, str]] = {
    "no key": (plain({}, 401), "answers 401"),
    "not here": (plain({"error": {"message": f"no {SECRET} here"}}, 404), "answers 404"),
    "broken": ((500, {}, [f"<b>\n\nyour key {SECRET}\n".encode()]), "answers 500"),
    "redirect": ((307, {"Location": f"http://127.0.0.1:1/{SECRET}"}, []), "it redirects to"),
    "HTML": ((200, {}, [b"<html><body>\n<p>Welcome"]), "does not answer as OpenAI's servers do"),
    "a list": (plain([1, 2]), "does not answer as OpenAI's servers do"),
    "another form": (plain({"data": [{"name": "x"}]}), "does not answer as OpenAI's servers do"),
    "deep": ((200, {}, [b"[" * 200_000]), "does not answer as OpenAI's servers do"),
    "cut": ((200, {"Content-Length": "500"}, [b'{"data":']), "does not answer as"),
    "too long": ((200, {}, endless()), "answers with more than 10.0 MB: not read"),
    "too long an error": ((500, {}, endless()), "answers with more than 10.0 MB: not read"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_answer(
    made: Made, kind: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three lines, and never the key, whatever the server says."""
    monkeypatch.setenv(client.KEY, SECRET)
    answer, words = BAD[kind]
    with serving(lambda *_: answer) as (url, paths):
        text = "\n".join(error_of(capsys, "verify", made.adapter, "--server", url))
    assert words in text
    assert SECRET not in text
    assert paths == ["/v1/models"]


def test_an_answer_that_is_no_completion(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(lambda p, _: models("x") if "models" in p else plain({"choices": []})) as (url, _):
        lines = error_of(capsys, "verify", made.adapter, "--server", url)
    assert lines[0].endswith("/v1/completions does not answer as OpenAI's servers do")


@pytest.mark.parametrize("drips", [False, True])
def test_an_answer_that_takes_too_long(
    made: Made, drips: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "_LIST_SECONDS", 0.2)
    done = threading.Event()

    def slow(*_: object) -> Answer:
        if not drips:
            done.wait(60)
        return 200, {}, (b" " for _ in iter(lambda: done.wait(0.02), True))

    with serving(slow) as (url, _):
        lines = error_of(capsys, "verify", made.adapter, "--server", url)
        done.set()
    assert lines == [f"error: {url}/v1/models gave no answer in 0 s"]


WRONG = (
    "localhost:8000", "ftp://localhost", "file:///etc/passwd", "http://", "http://[x", "",
    "http://localhost:port", "http://a b", f"http://me:{SECRET}@x", f"http://x/?key={SECRET}",
)  # fmt: skip


@pytest.mark.parametrize("url", WRONG)
def test_a_wrong_address(made: Made, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    lines = error_of(capsys, "verify", made.adapter, "--server", url)
    assert lines[0].startswith("error: --server takes an ")
    assert SECRET not in "".join(lines)


def test_no_server_and_no_key(
    made: Made, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(lambda *_: plain({}, 401)) as (url, _):
        lines = error_of(capsys, "verify", made.adapter, "--server", url)
        assert lines[1] == "it asks for a key, and SORA_SERVER_KEY is not set"
    lines = error_of(capsys, "verify", made.adapter, "--server", url)  # it is gone now
    assert lines[0] == f"error: {url} cannot be asked: connection refused"
    monkeypatch.setenv(client.KEY, f"{SECRET}\nx")
    lines = error_of(capsys, "verify", made.adapter, "--server", url)
    assert lines == ["error: SORA_SERVER_KEY holds characters that no key can have"]


def test_what_does_not_go_together(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    adapter, url = str(made.adapter), "http://localhost:1"
    assert (
        "--model goes with --server only" in error_of(capsys, "verify", adapter, "--model", "x")[0]
    )
    for words in ([made.merged], ["--tolerance", "1e-3"], ["--certificate"]):
        lines = error_of(capsys, "verify", adapter, *words, "--server", url)
        assert "does not go with --server" in lines[0]
