"""`sora verify --server`: servers of this file, with good answers of every form, and bad ones."""

from __future__ import annotations

import copy
import json
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from sora_cli.app import run
from sora_cli.verify import server as client
from sora_cli.verify.served import Served, judge, judge_texts
from tests.golden import NUMBER, told
from tests.helpers_errors import error_of, refused
from tests.helpers_models import tiny_llama
from tests.helpers_verify import Made, letter_tokenizer

SECRET = "sk-secret-0123456789"
Answer = tuple[int, dict[str, str], Iterable[bytes]]
Answers = Callable[[str, Any], Answer]
"""From a path and a request's body to a status, headers and the pieces of a body."""


ADAPTER, BASE, ANOTHER = Served.ADAPTER, Served.BASE, Served.ANOTHER
NEITHER, UNKNOWN = Served.NEITHER, Served.UNKNOWN


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
            if status:  # else the pieces are all that is sent, headers included
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
    """A server of a model with the letter tokenizer, in one of the forms that servers have.

    Args:
        base: the bare base that it serves, too.
    """

    def __init__(self, model: Any, form: str, base: Any = None) -> None:
        self.model, self.base, self.form = model, base, form
        self.tokenizer, self.name, self.asked = letter_tokenizer(), "tiny", 0

    @torch.no_grad()
    def __call__(self, path: str, body: Any) -> Answer:
        if path == "/v1/models":
            own = {"id": self.name, "parent": None if self.base is None else "base"}
            return plain({"data": [own] if self.base is None else [{"id": "base"}, own]})
        if path == "/lora-adapters" and self.form == "llama.cpp" and self.base is not None:
            return plain([{"id": 0, "path": "a.gguf", "scale": 1.0}])
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
        bare = body["model"] == "base" or body.get("lora") == [{"id": 0, "scale": 0.0}]
        self.asked += 1
        scores = (
            (self.base if bare else self.model)(input_ids=torch.tensor([prompt]))
            .logits[0, -1]
            .log_softmax(-1)
        )
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


def facts_in(out: str) -> dict[str, Any]:
    """Parse strict JSON, which has no NaN and no Infinity."""
    facts: dict[str, Any] = json.loads(out, parse_constant=pytest.fail)
    return facts


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("verdict", "code"), [("this adapter", 0), ("the bare base", 1),
                                               ("neither", 1)])  # fmt: skip
def test_verdict(
    made: Made, served: dict[str, Any], form: str, verdict: str, code: int,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    with serving(OpenAI(served[verdict], form)) as (url, _):
        assert run(["verify", str(made.adapter), "--server", f"{url}/v1", "--json"]) == code
    facts = facts_in(capsys.readouterr().out)
    assert facts["verdict"] == verdict
    assert facts["noise"] is None
    assert (facts["tokens"] is None) == (form == "texts")
    if form != "texts" and verdict != "neither":
        assert facts["share"] == pytest.approx(1 - code, abs=1e-3)
        assert facts["residual"] < 1e-3


def rounded(model: Any, part: float) -> Any:
    """A copy whose weights are off by this part of their size, as coarse rounding does it."""
    model, generator = copy.deepcopy(model), torch.Generator().manual_seed(0)
    for weight in model.parameters():
        if weight.dim() > 1:
            noise = torch.randn(weight.shape, generator=generator)
            weight.data += part * weight.data.pow(2).mean().sqrt() * noise
    return model


def on(base: Any, merged: Any, plain_base: Any) -> Any:
    """The adapter of a merged model on another form of its base."""
    model = copy.deepcopy(base)
    for own, whole, before in zip(
        model.parameters(), merged.parameters(), plain_base.parameters(), strict=True
    ):
        own.data += whole.data - before.data
    return model


def weaker(adapter: Path, folder: Path, scale: float) -> Path:
    """A copy of an adapter at a part of its strength."""
    shutil.copytree(adapter, folder)
    file = folder / "adapter_model.safetensors"
    save_file({n: t * (scale if "lora_B" in n else 1) for n, t in load_file(file).items()}, file)
    return folder


def ask_of(
    capsys: pytest.CaptureFixture[str], adapter: Path, server: OpenAI
) -> tuple[int, dict[str, Any]]:
    with serving(server) as (url, _):
        code = run(["verify", str(adapter), "--server", url, "--model", server.name, "--json"])
    return code, facts_in(capsys.readouterr().out)


@pytest.mark.parametrize("form", FORMS)
def test_the_noise_of_the_base_decides(
    made: Made, served: dict[str, Any], form: str, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """An adapter and its cut, asked of a server of the uncut one: in float32, or with rounding."""
    cut = tmp_path / "cut"
    assert run(["prune", str(made.adapter), "-o", str(cut), "--mean-rank", "1"]) == 0
    capsys.readouterr()
    base, merged = served["the bare base"], served["this adapter"]
    coarse = rounded(base, 0.02)
    for bare, whole in ((base, merged), (coarse, on(coarse, merged, base))):
        code, facts = ask_of(capsys, made.adapter, OpenAI(whole, form, bare))
        rounds = form == "texts" and bare is coarse  # 3 of 16 tokens differ, and 1 of the base's
        assert (code, facts["verdict"]) == ((3, "cannot tell") if rounds else (0, "this adapter"))
        code, facts = ask_of(capsys, cut, OpenAI(whole, form, bare))
        assert (code, facts["verdict"]) == (1, "another adapter")


@pytest.mark.parametrize(("listed", "verdict"), [(True, ANOTHER), (False, UNKNOWN)])
def test_an_adapter_that_is_nearly_the_same(
    made: Made, served: dict[str, Any], listed: bool, verdict: Served, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Off by a tenth of the effect: rounding to 4 bits could be so large, but this is float32."""
    shutil.copytree(made.adapter, tmp_path / "other")
    file = tmp_path / "other" / "adapter_model.safetensors"
    generator = torch.Generator().manual_seed(0)
    save_file(
        {
            name: t * (1 + 0.05 * torch.randn(t.shape, generator=generator))
            for name, t in sorted(load_file(file).items())
        },
        file,
    )
    base = served["the bare base"] if listed else None
    _, facts = ask_of(capsys, tmp_path / "other", OpenAI(served["this adapter"], "vLLM", base))
    assert facts["verdict"] == verdict.value
    assert facts["residual"] < 0.15
    assert (facts["noise"] is None) != listed


def test_a_small_effect_and_rounding(
    made: Made, served: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The right adapter at a tenth: exact it is found; rounded it is at least not the base."""
    small, base = weaker(made.adapter, tmp_path / "small", 0.1), served["the bare base"]
    assert run(["merge", str(small), "-o", str(tmp_path / "merged")]) == 0
    capsys.readouterr()
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert ask_of(capsys, small, OpenAI(merged, "vLLM", base))[0] == 0
    assert ask_of(capsys, small, OpenAI(merged, "vLLM"))[0] == 0
    coarse = rounded(base, 0.05)
    code, facts = ask_of(capsys, small, OpenAI(on(coarse, merged, base), "vLLM", coarse))
    assert (code, facts["verdict"]) == (3, "cannot tell")
    assert "not the bare base" in facts["reason"]
    # by texts alone: hardly a next token is another one
    code, facts = ask_of(capsys, weaker(small, tmp_path / "tiny", 0.1), OpenAI(merged, "texts"))
    assert (code, facts["verdict"]) == (3, "cannot tell")
    assert "tell the adapter from its base" in facts["reason"]


def test_a_server_that_heeds_no_name(
    made: Made, served: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """Its base is the adapter again, and says nothing of its rounding."""
    merged = served["this adapter"]
    code, facts = ask_of(capsys, made.adapter, OpenAI(merged, "vLLM", merged))
    assert (code, facts["verdict"], facts["noise"]) == (0, "this adapter", None)


@pytest.mark.parametrize(
    ("to_adapter", "to_base", "size", "noise", "verdict"),
    [  # measured with SmolLM2-135M in llama.cpp, Q4_1: random adapters at four strengths
        (0.140, 1.255, 1.271, 0.110, ADAPTER),
        (1.396, 1.223, 0.912, 0.111, ANOTHER),  # the same recipe with another seed
        (0.130, 0.325, 0.295, 0.115, ADAPTER),
        (0.367, 0.288, 0.354, 0.107, ANOTHER),
        (0.145, 0.222, 0.156, 0.108, UNKNOWN),  # a small effect, and rounding
        (0.202, 0.195, 0.181, 0.107, UNKNOWN),
        # without a base to ask
        (0.140, 1.255, 1.271, None, UNKNOWN),
        (1.269, 0.110, 1.271, None, BASE),
        (0.030, 1.270, 1.271, None, ADAPTER),
        (0.000, 0.100, 0.100, None, ADAPTER),
        (0.100, 0.000, 0.100, None, BASE),
        (0.640, 0.640, 1.271, None, NEITHER),  # half the strength
        # the adapter is too near its base; the server's base is another model
        (0.110, 0.110, 0.010, 0.110, UNKNOWN),
        (2.100, 2.300, 1.271, 2.000, UNKNOWN),
    ],
)
def test_judgement(
    to_adapter: float, to_base: float, size: float, noise: float | None, verdict: Served
) -> None:
    found, why = judge(to_adapter, to_base, size, noise, most=noise or 0.15)
    assert found is verdict
    assert ("not the bare base" in why) == (found is UNKNOWN and size > 0.1 and noise != 2)


@pytest.mark.parametrize(
    ("given", "verdict"),
    [("a" * 10, ADAPTER), ("a" * 9 + "x", UNKNOWN), ("a" * 8 + "xy", UNKNOWN),
     ("b" * 9 + "x", BASE), ("a" * 5 + "b" * 5, NEITHER), ("x" * 10, NEITHER)],
)  # fmt: skip
def test_judgement_of_texts(given: str, verdict: Served) -> None:
    assert judge_texts(given, "", "a" * 10, "b" * 10).verdict is verdict


def test_judgement_of_texts_by_the_base() -> None:
    assert judge_texts("a" * 9 + "x", "b" * 9 + "y", "a" * 10, "b" * 10).verdict is ADAPTER
    assert judge_texts("a" * 9 + "x", "b" * 10, "a" * 10, "b" * 10).verdict is UNKNOWN
    assert judge_texts("a" * 5 + "x" * 5, "b" * 10, "a" * 10, "b" * 10).verdict is ANOTHER


def test_log_probabilities_that_end(
    made: Made, served: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    server = OpenAI(served["this adapter"], "vLLM")

    def answers(path: str, body: Any) -> Answer:
        if server.asked > 5:
            return plain({"choices": [{"text": "a"}]})
        return server(path, body)

    with serving(answers) as (url, _):
        assert run(["verify", str(made.adapter), "--server", url]) == 3
    told(capsys.readouterr().out, hide=NUMBER)


REFUSED = {"logprob": [1e200, 0.002, float("nan"), float("inf"), True, 10**400, None, "x"],
           "id": [True]}  # fmt: skip


@pytest.mark.parametrize(
    ("key", "value"), [(k, v) for k, vs in REFUSED.items() for v in vs], ids=lambda v: f"{v!r:.20}"
)
def test_what_is_no_log_probability(
    made: Made, key: str, value: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    first = {"token": "a", "id": 5, "logprob": -1.0, key: value}
    choice = {"text": "a", "logprobs": {"content": [first]}}
    with serving(lambda p, _: models("x") if "models" in p else plain({"choices": [choice]})) as (
        url,
        _,
    ):
        refused(capsys, "verify", made.adapter, "--server", url)


def test_nothing_to_tell_apart(
    made: Made, served: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An adapter that hardly changes its base: the server is not even put the texts."""
    weak = weaker(made.adapter, tmp_path / "weak", 1e-3)
    with serving(OpenAI(served["the bare base"], "llama.cpp")) as (url, paths):
        assert run(["verify", str(weak), "--server", url]) == 3
    assert paths == ["/v1/models", "/v1/completions", "/lora-adapters"]
    told(capsys.readouterr().out, hide=NUMBER)


def test_another_vocabulary(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    def answers(path: str, _: Any) -> Answer:
        if path == "/v1/models":
            return models("other")
        top = {"\u4e16": -0.1, "\u754c": -2.5}
        return plain({"choices": [{"text": "", "logprobs": {"top_logprobs": [top]}}]})

    with serving(answers) as (url, _):
        assert run(["verify", str(made.adapter), "--server", url]) == 1
    told(capsys.readouterr().out, hide=NUMBER)


# the model


def test_the_choice_of_a_model(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    server = ["verify", made.adapter, "--server"]
    with serving(lambda *_: models("base", "lora")) as (url, _):
        refused(capsys, *server, url)
        refused(capsys, *server, url, "--model", "lorra")
        chosen = client.Server(url)
        chosen.choose("lora", made.adapter)
        assert chosen.model == "lora"
    listed = {"data": [{"id": "base", "root": str(made.base)},
                       {"id": "x", "root": str(made.adapter)}]}  # fmt: skip
    with serving(lambda *_: plain(listed)) as (url, _):  # as vLLM lists adapters
        chosen = client.Server(url)
        chosen.choose(None, made.adapter)
        assert chosen.model == "x"
        chosen.find_base({str(made.base), "me/other"})
        assert chosen.base == {"model": "base"}


# bad answers


def endless() -> Iterator[bytes]:
    for _ in range(1600):
        yield b"x" * 65_536  # 100 MB


BAD: dict[str, Answer] = {
    "no key": plain({}, 401),
    "not here": plain({"error": {"message": f"no {SECRET} here"}}, 404),
    "broken": (500, {}, [f"<b>\n\nyour key {SECRET}\n".encode()]),
    "redirect": (307, {"Location": f"http://127.0.0.1:1/{SECRET}"}, []),
    "HTML": (200, {}, [b"<html><body>\n<p>Welcome"]),
    "a list": plain([1, 2]),
    "another form": plain({"data": [{"name": "x"}]}),
    "deep": (200, {}, [b"[" * 200_000]),
    "cut": (200, {"Content-Length": "500"}, [b'{"data":']),
    "too long": (200, {}, endless()),
    "too long an error": (500, {}, endless()),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_answer(
    made: Made, kind: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three lines, and never the key, whatever the server says."""
    monkeypatch.setenv(client.KEY, SECRET)
    with serving(lambda *_: BAD[kind]) as (url, paths):
        refused(capsys, "verify", made.adapter, "--server", url)
    assert paths == ["/v1/models"]


def test_an_answer_that_is_no_completion(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(lambda p, _: models("x") if "models" in p else plain({"choices": []})) as (url, _):
        refused(capsys, "verify", made.adapter, "--server", url)


NEVER_ENDING: dict[str, tuple[int, bytes, bytes]] = {
    "silence": (0, b"", b""),
    "status": (0, b"", b"H"),
    "header": (0, b"HTTP/1.1 200 OK\r\nX: ", b"x"),
    "continue": (0, b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "body": (200, b"", b" "),
    "error": (500, b"", b" "),
}


@pytest.mark.parametrize("kind", NEVER_ENDING)
def test_an_answer_that_never_ends(
    made: Made, kind: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The deadline is of the whole exchange, whatever part of it drips."""
    monkeypatch.setattr(client, "_LIST_SECONDS", 0.2)
    done, (status, first, piece) = threading.Event(), NEVER_ENDING[kind]

    def slow(*_: object) -> Answer:
        return status, {}, chain([first], (piece for _ in iter(lambda: done.wait(0.02), True)))

    with serving(slow) as (url, _):
        refused(capsys, "verify", made.adapter, "--server", url)
        done.set()


WRONG = (
    "localhost:8000", "ftp://localhost", "file:///etc/passwd", "http://", "http://[x", "",
    "http://localhost:port", "http://a b", f"http://me:{SECRET}@x", f"http://x/?key={SECRET}",
)  # fmt: skip


@pytest.mark.parametrize("url", WRONG)
def test_a_wrong_address(made: Made, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, "verify", made.adapter, "--server", url)


def test_no_server_and_no_key(
    made: Made, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(lambda *_: plain({}, 401)) as (url, _):
        refused(capsys, "verify", made.adapter, "--server", url)
    refused(capsys, "verify", made.adapter, "--server", url)
    monkeypatch.setenv(client.KEY, f"{SECRET}\nx")
    refused(capsys, "verify", made.adapter, "--server", url)


def test_the_key_goes_to_the_server_alone(
    made: Made, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy would read it; without a key it is used as by any program."""
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with serving(lambda *_: plain({}, 500)) as (url, paths), serving(lambda *_: plain([])) as proxy:
        monkeypatch.setenv("http_proxy", proxy[0])
        refused(capsys, "verify", made.adapter, "--server", url)
        assert (len(paths), len(proxy[1])) == (0, 1)
        monkeypatch.setenv(client.KEY, SECRET)
        refused(capsys, "verify", made.adapter, "--server", url)
        assert (len(paths), len(proxy[1])) == (1, 1)


def test_a_key_in_a_models_name(
    made: Made, served: dict[str, Any], capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv(client.KEY, SECRET)
    server = OpenAI(served["this adapter"], "llama.cpp")
    server.name = f"a{SECRET}b"
    with serving(server) as (url, _):
        place = f"{url}/{SECRET}"  # of no use there
        for words in ([url], [url, "--json"], [url, "--model", f"{SECRET}c"], [place]):
            run(["verify", str(made.adapter), "--server", *words])
            said = capsys.readouterr()
            assert "..." in said.out + said.err
            assert SECRET not in said.out + said.err


def test_what_does_not_go_together(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    adapter, url = str(made.adapter), "http://localhost:1"
    refused(capsys, "verify", adapter, "--model", "x")
    for words in ([made.merged], ["--tolerance", "1e-3"], ["--certificate"]):
        refused(capsys, "verify", adapter, *words, "--server", url)


def test_a_server_that_takes_no_form_of_request_is_asked_in_each() -> None:
    with serving(lambda *_: plain({"error": {"message": "no such form"}}, 400)) as (url, paths):
        server = client.Server(url)
        with pytest.raises(client.ServerError, match="no such form"):
            server.find_writing("a", [1])
    assert len(paths) == len(client._WRITING)
    assert server.way == client._WRITING[-1]


def test_what_cannot_be_compared_with_a_server(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(made.base, tmp_path / "mute", ignore=shutil.ignore_patterns("token*"))
    with serving(lambda *_: models("x")) as (url, paths):
        (line, *_) = error_of(
            capsys, "verify", made.adapter, "--server", url, "--base", tmp_path / "mute"
        )
        assert line.endswith("cannot be compared with a server: its base has no tokenizer")
        (line, *_) = error_of(capsys, "verify", made.merged, "--server", url)
        assert line.endswith("has no adapter that changes its base")
    assert not [path for path in paths if "completions" in path]
