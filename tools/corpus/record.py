"""Run command lines in this process, and record what a reader could see of each."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import struct
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sora_cli

Row = dict[str, Any]
"""Record of one command: its words, exit code, streams, and a digest for each file."""

_ROOT = Path(__file__).resolve().parents[2]
_SECONDS = re.compile(r"\b\d+(\.\d+)? (s|min \d\d s)\b")
_OF_NOW = re.compile(r"[\d.,]+ \w?B (?=are free\)|of memory\b)")
"""Free disk, and the memory of this process with a merge's added."""
_TEMPORARY = re.compile(rf"{re.escape(tempfile.gettempdir())}/sora-\w+")
_PARTS = re.compile(r"^(time: N s) \(.*\)$", re.MULTILINE)
_PROGRESS = re.compile(r".*\d%\|.*|.*\[\d\d:\d\d[,<].*|\s*(\x1b\[A)*|[\w ]+ \.\.\.")
_VERSION = re.compile(rf"\bsora {re.escape(sora_cli.__version__)}\b")
_VERSIONS = ("sora_version", "transformers_version", "peft_version")


class Places:
    """Directories whose names do not belong to a result, and the names to write instead."""

    def __init__(self, names: Mapping[Path, str]) -> None:
        whole = {str(path.resolve()): name for path, name in names.items()}
        whole |= {str(_ROOT): "REPOSITORY", sys.prefix: "ENVIRONMENT"}
        # a directory below another one first
        self._names = sorted(whole.items(), key=lambda item: -len(item[0]))

    def plain(self, text: str) -> str:
        """Return a text without places, durations and this program's version."""
        for path, name in self._names:
            text = text.replace(path, name)
        text = _VERSION.sub("sora VERSION", _SECONDS.sub("N s", _TEMPORARY.sub("TMP", text)))
        return "\n".join(line.rstrip() for line in text.splitlines())

    def digests(self, place: Path) -> dict[str, str]:
        """Return {name: digest} of a file, or of all files below a directory."""
        files = [place] if place.is_file() else sorted(p for p in place.rglob("*") if p.is_file())
        return {str(f.relative_to(place.parent)): self._digest(f) for f in files}

    def _digest(self, file: Path) -> str:
        content = file.read_bytes()
        if file.suffix == ".safetensors":
            content = self._plain_header(content)
        elif file.suffix == ".json":
            content = json.dumps(_without_versions(json.loads(content))).encode()
        if file.suffix in (".json", ".jsonl", ".md", ".txt", ".yaml", ".Modelfile"):
            content = self.plain(content.decode()).encode()
        return hashlib.sha256(content).hexdigest()

    def _plain_header(self, content: bytes) -> bytes:
        """Return a file of tensors with its header's places replaced; its padding is left out."""
        end = 8 + struct.unpack("<Q", content[:8])[0]
        return self.plain(content[8:end].decode()).encode() + content[end:]


def tidy(text: str) -> str:
    """Return what a terminal shows without signs of progress, empty lines and sizes of now."""
    text = _PARTS.sub(r"\1", _OF_NOW.sub("N ", text))
    return "\n".join(line for line in text.splitlines() if not _PROGRESS.fullmatch(line))


def _without_versions(data: Any) -> Any:
    """Return JSON data with the order of its keys, and without versions of programs."""
    if isinstance(data, dict):
        hidden = {key: "VERSION" for key in _VERSIONS if key in data}
        return {key: _without_versions(value) for key, value in {**data, **hidden}.items()}
    return [_without_versions(value) for value in data] if isinstance(data, list) else data


def recorded(
    run: Callable[[Sequence[str]], int], words: Sequence[str], output: Path | None, places: Places
) -> Row:
    """Run a command line; return its row.

    Args:
        output: the file or directory that it writes.
    """
    with captured() as streams:
        code = run(words)
    texts = {name: tidy(places.plain(text)) for name, text in streams.items()}
    row: Row = {"command": places.plain(" ".join(words)), "exit": code, **texts}
    if output is not None:
        row["files"] = places.digests(output) if output.exists() else {}
    return row


@contextmanager
def captured() -> Iterator[dict[str, str]]:
    """Give a mapping that has the texts of both streams in the end, also of child processes."""
    streams = {"stdout": sys.stdout, "stderr": sys.stderr}
    texts: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        kept = {}
        for number, (name, stream) in enumerate(streams.items(), 1):
            stream.flush()
            kept[number] = os.dup(number)
            with Path(folder, name).open("wb") as file:
                os.dup2(file.fileno(), number)
        try:
            yield texts
        finally:
            for number, (name, stream) in enumerate(streams.items(), 1):
                stream.flush()
                os.dup2(kept[number], number)
                os.close(kept[number])
                texts[name] = Path(folder, name).read_text("utf-8", errors="replace")


@contextmanager
def scratch() -> Iterator[Path]:
    """Give an empty working directory for one adapter's commands."""
    before, folder = Path.cwd(), Path(tempfile.mkdtemp(prefix="corpus-"))
    os.chdir(folder)
    try:
        yield folder
    finally:
        os.chdir(before)
        shutil.rmtree(folder)
