"""A client of OpenAI-style servers: next tokens with log-probabilities, texts, and vectors.

A server may be anybody's: one deadline holds for the whole exchange, answers are limited in size,
neither a redirect nor a proxy gets the key, and it is taken out of every text that is shown.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from http.client import HTTPException
from itertools import chain
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote_plus, urlsplit
from urllib.request import HTTPRedirectHandler, ProxyHandler, Request, build_opener

from methods.words import closest
from sora_cli.core.console import size
from sora_cli.core.errors import SoraError, reason
from sora_cli.core.shell import quote
from sora_cli.core.words import first_few

KEY = "SORA_SERVER_KEY"
"""The environment variable with the server's key. Not OPENAI_API_KEY: a key that lies there for
another server would be sent to any address that is typed."""
TOP = 5
"""Likeliest tokens to ask for: OpenAI's own limit for completions."""
_MOST_BYTES = 10_000_000
_LIST_SECONDS, _TOKEN_SECONDS = 20.0, 180.0  # a server may load the model at the first token
_MOST_MODELS = 8
_CERTAIN, _IMPOSSIBLE = 1e-3, -1e3
"""Largest log-probability, 0 but for rounding; and the smallest that is compared: below it a server
says that a token cannot come, each with a number of its own."""
_OTHER_FORM = (400, 404, 405, 415, 422, 501)
"""Statuses of a server that does not know a path, or refuses the form of a request."""


class ServerError(SoraError):
    """The server answered with an error, such as the status 404, or with what cannot be used."""

    status: int | None = None


class _NoRedirect(HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """Follow nothing: the redirect becomes an `HTTPError`."""


@dataclass(frozen=True)
class Way:
    """A form of request that a server takes.

    Attributes:
        path: of the URL.
        ids: the prompt is a list of token ids, else a text.
        logprobs: log-probabilities are asked for.
        uncached: beginnings of texts are not taken from a cache. llama.cpp keeps what it computed
            before the strength of an adapter was changed, and mixes both.
    """

    path: str
    ids: bool = False
    logprobs: bool = False
    uncached: bool = False

    @property
    def chat(self) -> bool:
        """True if the server puts the text into its chat template."""
        return "chat" in self.path

    def body(self, text: str, ids: Sequence[int], tokens: int = 1) -> dict[str, Any]:
        """Return the request for the next tokens, the likeliest ones."""
        body: dict[str, Any] = {"max_tokens": tokens, "temperature": 0}
        if self.uncached:
            body["cache_prompt"] = False
        if self.chat:
            body["messages"] = [{"role": "user", "content": text}]
            return body | ({"logprobs": True, "top_logprobs": TOP} if self.logprobs else {})
        body["prompt"] = list(ids) if self.ids else text
        return body | ({"logprobs": TOP} if self.logprobs else {})


COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
EMBEDDINGS = "/v1/embeddings"
_WAYS = tuple(
    Way(path, ids, logprobs, uncached)
    for path, ids in ((COMPLETIONS, True), (COMPLETIONS, False), (CHAT, False))
    for logprobs, uncached in ((True, True), (True, False), (False, False))
    if logprobs or not ids  # without log-probabilities, ids say no more than a text
)

_WRITING = tuple(
    Way(COMPLETIONS, ids, uncached=uncached) for ids in (True, False) for uncached in (True, False)
)
"""Forms of a request for a whole text: the prompt is rendered here, so no chat is asked for."""


@dataclass(frozen=True)
class NextToken:
    """A server's next token.

    Attributes:
        text: of the likeliest token.
        likely: id (None if the server does not give it), text and log-probability of the likeliest
            tokens; empty if the server gives none.
    """

    text: str
    likely: tuple[tuple[int | None, str, float], ...]


class _Listed:
    """A model in a server's list: its id and root as paths here (a Hub id, too), and its parent."""

    def __init__(self, entry: Mapping[str, Any]) -> None:
        named = (entry["id"], entry.get("root"))
        self.places = {Path(str(name)).resolve() for name in named if name is not None}
        self.parent = str(entry.get("parent"))


class Server:
    """An OpenAI-style server.

    Attributes:
        url: its address, without /v1.
        model: the model to ask; empty until `choose`.
        way: the form of requests, chosen by `find_way`.
        base: the part of a request that asks the bare base, set by `find_base`; empty: it cannot be
            asked.
    """

    def __init__(self, url: str) -> None:
        self.url, self.model, self.way = checked_url(url), "", _WAYS[0]
        self.base: dict[str, Any] = {}
        self._key, self._models = server_key(), dict[str, _Listed]()
        # a proxy reads all that is sent by http; https is passed on through it, unread
        unread = not self._key or self.url.lower().startswith("https:")
        self._opener = build_opener(_NoRedirect(), ProxyHandler(None if unread else {}))

    def choose(self, name: str | None, folder: Path) -> None:
        """Choose the model to ask from the server's own list.

        Args:
            name: None: the only model, or the only one that is named like the adapter.
            folder: the adapter's directory.
        """
        try:
            listed = {
                str(entry["id"]): _Listed(entry) for entry in self._reply("/v1/models")["data"]
            }
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise self._unreadable("/v1/models") from error
        if name is None:
            places = {folder.resolve(), folder.parent.resolve()}
            fitting = [m for m, one in listed.items() if len(listed) == 1 or one.places & places]
        else:
            fitting = [name] if name in listed else []
        if len(fitting) != 1:
            near = closest(name, listed) if name is not None else "NAME" if listed else None
            has = f"{len(listed)} models" if name is None else f"no model '{name}'"
            raise self._error(
                f"{self.url} has {has}",
                where=f"it lists: {first_few(map(self.shown, listed), _MOST_MODELS) or 'none'}",
                hint=f"--model {quote(near)}" if near else None,
            )
        (self.model,), self._models = fitting, listed

    def find_base(self, names: Collection[str]) -> None:
        """Find out how to ask the bare base: by its own name, or with llama.cpp's adapters at 0.

        Args:
            names: of the base, here.
        """
        places = {Path(name).resolve() for name in names}
        found = [m for m, entry in self._models.items() if entry.places & places]
        for name in (self._models[self.model].parent, *found):  # vLLM names an adapter's parent
            if name in self._models and name != self.model:
                self.base = {"model": name}
                return
        try:
            adapters = [{"id": a["id"], "scale": 0.0} for a in self._reply("/lora-adapters")]
        except (ServerError, KeyError, TypeError):
            return  # it is another server's, and has no such path
        # llama.cpp's word, and no method of ours
        self.base = dict(lora=adapters) if adapters else {}  # noqa: C408

    def find_way(self, text: str, ids: Sequence[int], *, chats: bool) -> None:
        """Choose the first form of request that the server takes, by asking for one token.

        Args:
            chats: the chat template is known here, too.
        """
        token = self._first_of([way for way in _WAYS if chats or not way.chat], text, ids)
        if self.way.logprobs and not token.likely:  # it left our wish aside
            self.way = Way(self.way.path)

    def find_writing(self, text: str, ids: Sequence[int]) -> None:
        """Choose the first form of request for a whole text that the server takes."""
        self._first_of(_WRITING, text, ids)

    def _first_of(self, ways: Sequence[Way], text: str, ids: Sequence[int]) -> NextToken:
        """Choose the first form of request that the server takes, and return its answer."""
        for way in ways[:-1]:
            self.way = way
            try:
                return self.ask(text, ids)
            except ServerError as error:
                if error.status not in _OTHER_FORM:
                    raise
        self.way = ways[-1]
        return self.ask(text, ids)

    def write(self, text: str, ids: Sequence[int], tokens: int) -> str:
        """Return the text that the model writes after a prompt, without outer white space.

        Args:
            tokens: the largest number of new tokens.
        """
        return self.ask(text, ids, tokens=tokens).text.strip()

    def ask(
        self, text: str, ids: Sequence[int], *, base: bool = False, tokens: int = 1
    ) -> NextToken:
        """Return the token, or the text, that the model or its bare base writes after a text."""
        body = {"model": self.model, **self.way.body(text, ids, tokens),
                **(self.base if base else {})}  # fmt: skip
        reply = self._reply(self.way.path, body)
        try:
            choice = reply["choices"][0]
            written = choice["message"]["content"] if self.way.chat else choice["text"]
            return NextToken(str(written or ""), _likely(choice.get("logprobs") or {}))
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise self._unreadable(self.way.path) from error

    def vectors(self, texts: Sequence[str], *, base: bool = False) -> list[list[float]]:
        """Return the vector of each text by the model or its bare base, all of one length."""
        self.way = Way(EMBEDDINGS)
        body = {"model": self.model, "input": list(texts), "encoding_format": "float",
                **(self.base if base else {})}  # fmt: skip
        reply = self._reply(EMBEDDINGS, body)
        try:
            made = {int(one["index"]): list(map(float, one["embedding"])) for one in reply["data"]}
            vectors = [made[i] for i in range(len(texts))]
        except (LookupError, TypeError, ValueError, OverflowError) as error:
            raise self._unreadable(EMBEDDINGS) from error
        if not vectors[0] or not all(map(math.isfinite, chain(*vectors))) or (
            len({len(vector) for vector in vectors}) > 1
        ):  # fmt: skip
            raise self._unreadable(EMBEDDINGS)
        return vectors

    def _reply(self, path: str, body: dict[str, Any] | None = None) -> Any:
        headers = {"Content-Type": "application/json", "User-Agent": "sora"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        data = None if body is None else json.dumps(body).encode()
        seconds = _LIST_SECONDS if body is None else _TOKEN_SECONDS
        address = self.url + path
        request = Request(address, data, headers)
        try:
            status, place, text = within(seconds, lambda: self._exchange(request, seconds))
        except (HTTPException, OSError, ValueError) as error:
            why = error.reason if isinstance(error, URLError) else error
            if isinstance(why, TimeoutError):
                raise self._error(f"{address} gave no answer in {seconds:.0f} s") from error
            words = reason(why) if isinstance(why, OSError) else str(why)
            raise self._error(
                f"{self.url} cannot be asked: {self._line(words)}",
                hint="is the server running, and is this its port?",
            ) from error
        if len(text) > _MOST_BYTES:
            raise self._error(
                f"{self.url} answers with more than {size(_MOST_BYTES)}: not read",
                hint="is it an OpenAI-style server?",
            )
        if not 200 <= status < 300:
            raise self._refusal(status, address, place, text)
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            raise self._unreadable(path, text) from error

    def _exchange(self, request: Request, seconds: float) -> tuple[int, str, bytes]:
        """Return the status, the place of a redirect, and the body as far as it may be read."""
        try:
            answer = self._opener.open(request, timeout=seconds)
        except HTTPError as error:
            answer = error
        with answer:
            place = str(answer.headers.get("Location"))
            return answer.status, place, answer.read(_MOST_BYTES + 1)

    def _refusal(self, status: int, address: str, place: str, body: bytes) -> ServerError:
        where: str | None
        hint: str | None
        if 300 <= status < 400:
            where, hint = f"it redirects to {self._line(place)}", "give the server's own address"
        elif status in (401, 403):
            where = f"{KEY} is refused" if self._key else f"it asks for a key, and {KEY} is not set"
            hint = f"export {KEY}=..."
        else:
            said = self._line(_message(body))
            where = f"it says: {said}" if said else None
            hint = "is it the address of an OpenAI-style server?" if status == 404 else None
        refusal = self._error(f"{address} answers {status}", where=where, hint=hint)
        refusal.status = status
        return refusal

    def _unreadable(self, path: str, text: bytes = b"") -> ServerError:
        said = self._line(text.decode(errors="replace"))
        return self._error(
            f"{self.url}{path} does not answer as OpenAI's servers do",
            where=f"it begins: {said}" if said else None,
            hint="is it the address of an OpenAI-style server?",
        )

    def _error(self, what: str, **more: str | None) -> ServerError:
        lines = {name: text and self.shown(text) for name, text in more.items()}
        return ServerError(self.shown(what), **lines)

    def _line(self, text: str) -> str:
        """Return a server's text on one short line; the key is taken out before the text is cut."""
        text = " ".join(self.shown(text).split())
        return text if len(text) <= 100 else f"{text[:97]}..."

    def shown(self, text: str) -> str:
        """Return a text without the key, in each form that a server may repeat it."""
        forms = (self._key, json.dumps(self._key)[1:-1], quote_plus(self._key))
        for form in filter(None, forms):
            text = text.replace(form, "...")
        return text


def within(seconds: float, work: Callable[[], Any]) -> Any:
    """Return what a call returns, or raise `TimeoutError` after these seconds, whatever it does.

    A socket's own limit holds for each piece anew: a header that drips, or an endless 100 Continue,
    never meets it, and a name may be looked up without any.
    """
    done = Future[Any]()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    Thread(target=run, daemon=True).start()  # left to itself after the deadline
    return done.result(seconds)


def checked_url(url: str) -> str:
    """Return a server's address without /v1 at its end; only a plain http address is accepted."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or not url.isprintable() or not url.isascii() or " " in url:
        raise SoraError(
            f"--server takes an http address, not '{url.rpartition('@')[2]}'",
            hint="for example --server http://localhost:8000",
        )
    if parts.username is not None or parts.query or parts.fragment:
        raise SoraError(
            f"--server takes an address without user, ? or #: {parts.scheme}://{parts.hostname}...",
            hint=f"a key goes into the environment: export {KEY}=...",
        )
    return url.rstrip("/").removesuffix("/v1")


def server_key() -> str:
    """Return the server's key from the environment; empty if there is none."""
    key = os.environ.get(KEY, "").strip()
    if not (key.isascii() and key.isprintable()):  # http.client's own error would show the key
        raise SoraError(f"{KEY} holds characters that no key can have")
    return key


def _likely(logprobs: dict[str, Any]) -> tuple[tuple[int | None, str, float], ...]:
    """Return the first token's likeliest ones, in the form of either of OpenAI's two interfaces."""
    if logprobs.get("content"):  # chat, and llama.cpp everywhere
        first = logprobs["content"][0]
        found = [
            (t.get("id"), t["token"], t["logprob"]) for t in first.get("top_logprobs") or [first]
        ]
    elif logprobs.get("top_logprobs"):
        found = [(None, text, value) for text, value in logprobs["top_logprobs"][0].items()]
    else:
        return ()
    numbers = []
    for i, text, value in found:
        if isinstance(i, bool) or isinstance(value, bool) or not float(value) <= _CERTAIN:
            raise ValueError  # NaN, too
        numbers.append((i if isinstance(i, int) and i >= 0 else None, str(text), float(value)))
    return tuple(token for token in numbers if token[2] >= _IMPOSSIBLE)


def _message(body: bytes) -> str:
    """Return the message of an error in JSON; else the text as it is."""
    text = body.decode(errors="replace")
    try:
        known = json.loads(text)
        error = known.get("error", known.get("detail", known.get("message", text)))
        return str(error.get("message", error) if isinstance(error, dict) else error)
    except (ValueError, AttributeError, RecursionError):
        return text
