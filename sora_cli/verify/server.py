"""A client of OpenAI-style servers: one next token at a time, with its log-probabilities if given.

A server may be anybody's: answers are limited in time and size, redirects are refused (they would
carry the key elsewhere), and the key is taken out of every text that is shown.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from methods.words import closest
from sora_cli.core.console import size
from sora_cli.core.errors import SoraError, reason
from sora_cli.core.words import first_few

KEY = "SORA_SERVER_KEY"
"""The environment variable with the server's key. Not OPENAI_API_KEY: a key that lies there for
another server would be sent to any address that is typed."""
TOP = 5
"""Likeliest tokens to ask for: OpenAI's own limit for completions."""
_MOST_BYTES = 10_000_000
_LIST_SECONDS, _TOKEN_SECONDS = 20.0, 180.0  # a server may load the model at the first token
_CHUNK, _MOST_MODELS = 65_536, 8
_OTHER_FORM = (400, 404, 405, 415, 422, 501)
"""Statuses of a server that does not know a path, or refuses the form of a request."""


class RefusalError(SoraError):
    """The server answered with an error, such as 404."""

    def __init__(self, status: int, what: str, **more: str | None) -> None:
        super().__init__(what, **more)
        self.status = status


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

    def body(self, text: str, ids: Sequence[int]) -> dict[str, Any]:
        """Return the request for one next token, the likeliest."""
        body: dict[str, Any] = {"max_tokens": 1, "temperature": 0}
        if self.uncached:
            body["cache_prompt"] = False
        if self.chat:
            body["messages"] = [{"role": "user", "content": text}]
            return body | ({"logprobs": True, "top_logprobs": TOP} if self.logprobs else {})
        body["prompt"] = list(ids) if self.ids else text
        return body | ({"logprobs": TOP} if self.logprobs else {})


COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
_WAYS = tuple(
    Way(path, ids, logprobs, uncached)
    for path, ids in ((COMPLETIONS, True), (COMPLETIONS, False), (CHAT, False))
    for logprobs, uncached in ((True, True), (True, False), (False, False))
    if logprobs or not ids  # without log-probabilities, ids say no more than a text
)


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


class Server:
    """An OpenAI-style server.

    Attributes:
        url: its address, without /v1.
        model: the model to ask; empty until `choose`.
        way: the form of requests, chosen by `find_way`.
    """

    def __init__(self, url: str) -> None:
        self.url, self.model, self.way = checked_url(url), "", _WAYS[0]
        self._key = server_key()
        self._opener = build_opener(_NoRedirect())

    def choose(self, name: str | None, folder: Path) -> None:
        """Choose the model to ask from the server's own list.

        Args:
            name: None: the only model, or the only one that is named like the adapter.
            folder: the adapter's directory.
        """
        try:
            entries = {str(e["id"]): str(e.get("root")) for e in self._reply("/v1/models")["data"]}
        except (KeyError, TypeError, AttributeError) as error:
            raise self._unreadable("/v1/models") from error
        known = first_few((self._clean(entry) for entry in entries), _MOST_MODELS)
        if name is not None:
            if name not in entries:
                near = closest(name, entries)
                raise SoraError(
                    f"{self.url} has no model '{name}'",
                    where=f"it lists: {known or 'none'}",
                    hint=f"--model '{self._clean(near)}'" if near else None,
                )
            self.model = name
            return
        places = {folder.resolve(), folder.parent.resolve()}
        fitting = [
            entry
            for entry, root in entries.items()
            if len(entries) == 1 or {Path(entry).resolve(), Path(root).resolve()} & places
        ]
        if len(fitting) != 1:
            raise SoraError(
                f"{self.url} has {len(entries)} models" + (": name one" if entries else ""),
                where=f"it lists: {known}" if entries else None,
                hint="--model NAME" if entries else "is a model loaded?",
            )
        (self.model,) = fitting

    def find_way(self, text: str, ids: Sequence[int], *, chats: bool) -> None:
        """Choose the first form of request that the server takes, by asking for one token.

        Args:
            chats: the chat template is known here, too.
        """
        ways = [way for way in _WAYS if chats or not way.chat]
        for way in ways:
            self.way = way
            try:
                token = self.ask(text, ids)
            except RefusalError as error:
                if error.status not in _OTHER_FORM or way is ways[-1]:
                    raise
            else:
                if way.logprobs and not token.likely:  # it left our wish aside
                    self.way = Way(way.path)
                return

    def ask(self, text: str, ids: Sequence[int]) -> NextToken:
        """Return the token that the model writes after a text."""
        reply = self._reply(self.way.path, {"model": self.model, **self.way.body(text, ids)})
        try:
            choice = reply["choices"][0]
            written = choice["message"]["content"] if self.way.chat else choice["text"]
            return NextToken(str(written or ""), _likely(choice.get("logprobs") or {}))
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise self._unreadable(self.way.path) from error

    def _reply(self, path: str, body: dict[str, Any] | None = None) -> Any:
        headers = {"Content-Type": "application/json", "User-Agent": "sora"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        data = None if body is None else json.dumps(body).encode()
        seconds = _LIST_SECONDS if body is None else _TOKEN_SECONDS
        end, address = time.monotonic() + seconds, self.url + path
        try:
            try:
                answer = self._opener.open(Request(address, data, headers), timeout=seconds)
            except HTTPError as error:
                with error:
                    raise self._refusal(error, self._read(error, end)) from error
            with answer:
                text = self._read(answer, end)
        except (TimeoutError, URLError, HTTPException, OSError) as error:
            why = error.reason if isinstance(error, URLError) else error
            if isinstance(why, TimeoutError):
                raise SoraError(f"{address} gave no answer in {seconds:.0f} s") from error
            words = reason(why) if isinstance(why, OSError) else str(why)
            raise SoraError(
                f"{self.url} cannot be asked: {self._clean(words)}",
                hint="is the server running, and is this its port?",
            ) from error
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            raise self._unreadable(path, text) from error

    def _read(self, answer: Any, end: float) -> bytes:
        """Read a body, piece by piece: a slow or endless one must not hold or fill the program."""
        pieces, length = [], 0
        while piece := answer.read1(_CHUNK):
            pieces.append(piece)
            length += len(piece)
            if length > _MOST_BYTES:
                raise SoraError(f"{self.url} answers with more than {size(_MOST_BYTES)}: not read",
                                hint="is it an OpenAI-style server?")  # fmt: skip
            if time.monotonic() > end:
                raise TimeoutError
        return b"".join(pieces)

    def _refusal(self, error: HTTPError, body: bytes) -> RefusalError:
        status, what = error.code, f"{error.url} answers {error.code}"
        if 300 <= status < 400:
            where = f"it redirects to {self._clean(str(error.headers.get('Location')))}"
            return RefusalError(status, what, where=where, hint="give the server's own address")
        if status in (401, 403):
            given = f"{KEY} is refused" if self._key else f"it asks for a key, and {KEY} is not set"
            return RefusalError(status, what, where=given, hint=f"export {KEY}=...")
        said = self._clean(_message(body))
        hint = "is it the address of an OpenAI-style server?" if status == 404 else None
        return RefusalError(status, what, where=f"it says: {said}" if said else None, hint=hint)

    def _unreadable(self, path: str, text: bytes = b"") -> SoraError:
        said = self._clean(text[:_CHUNK].decode(errors="replace"))
        return SoraError(
            f"{self.url}{path} does not answer as OpenAI's servers do",
            where=f"it begins: {said}" if said else None,
            hint="is it the address of an OpenAI-style server?",
        )

    def _clean(self, text: str) -> str:
        """Return a server's text without the key, on one short line."""
        text = " ".join((text.replace(self._key, "...") if self._key else text).split())
        return text if len(text) <= 100 else f"{text[:97]}..."


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
    numbers = [
        (i if isinstance(i, int) and i >= 0 else None, str(text), float(value))
        for i, text, value in found
    ]
    return tuple(token for token in numbers if math.isfinite(token[2]))


def _message(body: bytes) -> str:
    """Return the message of an error in JSON; else the text as it is."""
    text = body[:_CHUNK].decode(errors="replace")
    try:
        known = json.loads(text)
        error = known.get("error", known.get("detail", known.get("message", text)))
        return str(error.get("message", error) if isinstance(error, dict) else error)
    except (ValueError, AttributeError, RecursionError):
        return text
