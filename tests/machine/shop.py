"""A directory in which commands work, and what must hold after each of them."""

from __future__ import annotations

import io
import json
import shlex
import shutil
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from tempfile import gettempdir

import pytest
import torch
from torch import Tensor

from sora_cli.app import run
from sora_cli.core.atomic import is_leftover
from sora_cli.core.exit_codes import OK
from tests.helpers_runs import files_of
from tests.machine.place import Origin, adapter_in, digests
from tests.machine.thing import Thing

TOLD = 1e-3
"""Relative difference of outputs that must not be called the same."""


@dataclass(frozen=True)
class Said:
    """How a command ended."""

    code: int
    out: str
    err: str


class Shop:
    """All things in the directory, by their names; subclasses take the steps."""

    def __init__(self, origin: Origin, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self.origin, self.folder = origin, folder
        self.things: dict[str, Thing] = {}
        self.steps: list[str] = []
        self._files = {"": digests(origin.folder)}
        self._calls: list[tuple[list[str], Said]] = []
        self._written: str | None = None
        self.scratch = folder.with_name(f"{folder.name}-scratch")

    def do(self, line: str) -> None:
        """Take a step; its checks, and those that hold after every step."""
        self.steps.append(line)
        verb, *words = shlex.split(line)
        shutil.rmtree(self.scratch, ignore_errors=True)
        self.scratch.mkdir()
        self._calls, self._written = [], None
        try:
            getattr(self, f"_{verb}")(*words)
            self._check_twin(*self._calls[0])
            self._check_rest()
        except BaseException as error:
            error.add_note("steps:\n  " + "\n  ".join(self.steps))
            raise

    def _check_twin(self, typed: list[str], said: Said) -> None:
        """A packed file gives what the directory that it was made from gives, byte for byte."""
        read = [thing for thing in self.things.values()
                if thing.kind == "packed" and thing.name != self._written
                and any(str(self._at(thing.name)) in word for word in typed)]  # fmt: skip
        unpacks = typed[0] == "export" and not {"--format", "--layout", "--dtype"} & {*typed}
        if said.code != OK or not read or unpacks:
            return
        places = {str(self.folder / str(self._written)): str(self.scratch / str(self._written))}
        for thing in read:
            twin = self.scratch / f"{thing.name}-twin"
            for name, content in (thing.twin or {}).items():
                (twin / name).parent.mkdir(parents=True, exist_ok=True)
                (twin / name).write_bytes(content)
            places[str(self._at(thing.name))] = str(twin)
        for place, other in places.items():
            typed = [word.replace(place, other) for word in typed]
        again = self._call(*typed)
        assert again.code == OK, again.err

        def named(content: bytes) -> bytes:
            here = content.replace(str(self.scratch).encode(), str(self.folder).encode())
            return here.replace(b"-twin", b"")

        if "--json" in typed:
            assert named(again.out.encode()).decode() == said.out
        if self._written is not None:
            one, other = (_settled(place / self._written) for place in (self.folder, self.scratch))
            assert one.keys() == other.keys()
            assert [name for name in one if named(other[name]) != one[name]] == []

    def _check_rest(self) -> None:
        """Nothing but the step's output has changed, and nothing half-written is left."""
        assert {p.name for p in self.folder.iterdir()} == set(self.things)
        left = [p for p in self.folder.rglob("*") if is_leftover(p) or p.name == ".lock"]
        assert not left
        for name, files in self._files.items():
            assert digests(self._at(name) if name else self.origin.folder) == files, name

    def _at(self, name: str) -> Path:
        return self.folder / name

    def _call(self, *words: object) -> Said:
        typed = [str(word) for word in words]
        out, err = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            patch.setattr("sys.argv", ["sora", *typed])
            code = run(typed)
        said = Said(code, out.getvalue(), err.getvalue())
        self._calls.append((typed, said))
        assert "Traceback" not in said.err, said.err
        assert f"{gettempdir()}/sora-" not in said.out + said.err
        return said

    def _refused(self, said: Said, reason: str) -> None:
        assert said.code == 2, f"should be refused: {reason}\n{said.err}"
        lines = said.err.splitlines()
        first = next(i for i, line in enumerate(lines) if line.startswith("error: "))
        assert len(lines) - first <= 3, said.err
        assert said.out == ""

    def _done(self, said: Said, code: int = OK) -> None:
        assert said.code == code, said.err

    def _wrote(self, thing: Thing) -> None:
        """Remember an output, after all its files were found to be its own."""
        place = self._at(thing.name)
        files = digests(place)
        for file in files:
            assert f"{gettempdir()}/sora-".encode() not in Path(file).read_bytes(), file
        self.things[thing.name], self._files[thing.name] = thing, files
        self._written = thing.name

    # what is refused

    def _no_adapter(self, *sources: str) -> str | None:
        for name in sources:
            thing = self.things.get(name)
            if thing is None or thing.kind in ("stopped", "merged"):
                return f"{name} has no adapter"
        return None

    def _taken(
        self, out: str, sources: Sequence[str], words: Sequence[str], kind: str
    ) -> str | None:
        """The reason why a command must not write its output, if there is one."""
        there = self.things.get(out)
        if (kind == "packed") != out.endswith(".safetensors"):
            return f"{out} is no name of {kind}" if kind == "packed" or there else None
        if there is None:
            return None
        if out in sources:
            return f"{out} is read"
        same = {"run", "stopped"} if kind == "run" else {kind}
        if "--force" not in words or there.kind not in same:
            return f"{out} is there"
        return None

    # what things answer

    def _logits(self, thing: Thing) -> Tensor:
        return self.origin.logits(thing.update, thing.head)

    def _near(self, *things: Thing) -> float:
        """The share of rows whose answer float32 does not decide."""
        rows = 1e-9
        for thing in things:
            logits = self._logits(thing)
            rows += int(((logits[:, 0] - logits[:, 1]).abs() < TOLD).sum()) / len(logits)
        return rows

    def _accuracy(self, thing: Thing) -> float:
        wanted = torch.tensor([row["label"] for row in self.origin.rows])
        return float((self._logits(thing).argmax(1) == wanted).double().mean())

    def _has_answers(self, name: str) -> str | None:
        thing = self.things.get(name)
        return f"{name} answers nothing" if thing is None or thing.kind == "stopped" else None

    def _lineage(self, place: Path) -> tuple[str, ...]:
        facts = json.loads((adapter_in(place) / "sora.json").read_text())
        return tuple(entry["command"] for entry in facts["lineage"])


def _settled(place: Path) -> dict[str, bytes]:
    """The files without times in them."""
    if place.is_file():
        return {"": place.read_bytes()}
    timed = ("report.json", "history.json", "checkpoints", "ranks.png")
    return {name: c for name, c in files_of(place).items() if not name.startswith(timed)}
