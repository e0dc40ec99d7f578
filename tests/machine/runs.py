"""Runs in the directory: trained, stopped by signals, resumed, cut and healed."""

from __future__ import annotations

import hashlib
import json
import shlex
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from sora_cli.report import RunReport, read_report
from tests.helpers_runs import files_of, signal_at, timeless
from tests.machine.place import (
    EXACT,
    METHODS,
    STEPS,
    adapter_in,
    apart,
    digests,
    stored_update,
    truncated,
)
from tests.machine.shop import Said, Shop
from tests.machine.thing import Thing
from tests.present import present

_STOPPED = 128 + signal.SIGTERM


class Runs(Shop):
    """Steps that train."""

    wholes: ClassVar[dict[str, tuple[dict[str, bytes], dict[str, Any]]]] = {}
    """Adapter and report of each run that nothing stopped, for all with the same directory."""

    def _train(self, out: str, method: str, *words: str) -> None:
        self._begin(out, method, None, words)

    def _stop(self, out: str, method: str, step: str, *words: str) -> None:
        self._begin(out, method, int(step), words)

    def _begin(self, out: str, method: str, step: int | None, words: Sequence[str]) -> None:
        start = next((w.removeprefix("start=") for w in words if w.startswith("start=")), None)
        make = ["train", str(self.origin.recipe), METHODS[method], "output.dir=OUT"]
        make += [] if start is None else [f"start.adapter={self._at(start)}"]
        self._run(out, make, [] if start is None else [start], step, words)

    def _heal(self, source: str, out: str, steps: str, *words: str) -> None:
        """Cut to rank 1, then train on; `stop=N`: a signal ends it."""
        step = next((int(w.removeprefix("stop=")) for w in words if w.startswith("stop=")), None)
        make = ["prune", str(self._at(source)), "-o", "OUT", "--rank", "1", "--heal", steps]
        if source in self.things and self.things[source].kind != "run":
            make += ["--recipe", str(self.origin.recipe)]
        self._run(out, make, [source], step, words)

    def _run(
        self, out: str, make: Sequence[str], sources: Sequence[str], step: int | None,
        words: Sequence[str],
    ) -> None:  # fmt: skip
        reason = self._no_adapter(*sources) or self._taken(out, sources, words, "run")
        if sources and METHODS["sora"] in make:
            reason = "gates cannot start from an adapter"
        force = [word for word in words if word == "--force"]
        said = self._trained(out, [*make, *force], step)
        if reason:
            return self._refused(said, reason)
        source = self.things[sources[0]] if sources else None
        self._files.pop(out, None)
        if make[0] == "prune":
            self._check_cut(out, make, source)
        if step is None:
            self._done(said)
            return self._finished(out, make, said)
        return self._stopped(out, make, step, said)

    def _trained(self, out: str, words: Sequence[str], step: int | None) -> Said:
        given = [word.replace("OUT", str(self._at(out))) for word in words]
        with pytest.MonkeyPatch.context() as patch:
            if step is not None:
                signal_at(patch, step)
            return self._call(*given)

    def _check_cut(self, out: str, make: Sequence[str], source: Thing | None) -> None:
        """A healed run begins at the ranks of the cut, and without a step it is the cut."""
        report = self._report(out)
        assert source is not None
        assert report.start is not None
        assert report.start.rule == {"rank": 1}
        cut = {path: min(1, rank) for path, rank in source.ranks.items()}
        assert {path: m.start for path, m in report.ranks.items() if m.start} == {
            path: rank for path, rank in cut.items() if rank
        }
        if make[make.index("--heal") + 1] == "0":
            update, head, _ = stored_update(self._at(out))
            expected = {path: truncated(change, 1) for path, change in source.update.items()}
            assert apart(expected, update) < EXACT
            assert apart(source.head, head) == 0

    def _report(self, out: str) -> RunReport:
        return present(read_report(self._at(out)))

    def _stopped(self, out: str, make: Sequence[str], step: int, said: Said) -> None:
        self._done(said, _STOPPED)
        report = self._report(out)
        assert (report.status, report.steps) == ("interrupted", step)
        # the former run's result stays until this run's is there, and nobody may take it for that
        former = {"adapter", "ranks.png"} if "--force" in make or out in self.things else set()
        assert {p.name for p in self._at(out).iterdir()} <= {
            "checkpoints", "history.json", "report.json", *former,
        }  # fmt: skip
        assert [p.name for p in (self._at(out) / "checkpoints").iterdir()] == [f"step-{step:06d}"]
        told = "to resume: sora "
        line = next(line for line in said.err.splitlines() if line.startswith(told))
        resume = shlex.split(line.removeprefix(told))
        assert "--resume" in resume
        self._wrote(Thing(out, "stopped", out, {}, {}, {}, make=tuple(make), resume=tuple(resume)))

    def _resume(self, out: str, step: str | None = None) -> None:
        """Type what the stopped run said; a finished run has nothing left to do."""
        thing = self.things[out]
        if thing.kind == "run":
            said = self._trained(out, [*thing.make, "--resume"], None)
            self._done(said)
            assert "already holds this run, finished" in said.err
            return None
        said = self._trained(out, thing.resume, None if step is None else int(step))
        self._files.pop(out)
        if step is not None and self._report(out).status == "interrupted":
            return self._stopped(out, thing.make, int(step), said)
        self._done(said)
        assert self._report(out).resumed
        self._check_whole(out, thing.make)
        return self._finished(out, thing.make, said)

    def _check_whole(self, out: str, make: Sequence[str]) -> None:
        """A run that was stopped ends as one that was not."""
        if self._key(make) not in self.wholes:
            place = self.scratch / out
            self._done(self._call(*(word.replace("OUT", str(place)) for word in make)))
            self._remember(place, make)

    def _remember(self, place: Path, make: Sequence[str]) -> None:
        """Every run of the same command is the same to the byte."""
        report = present(read_report(place))
        found = files_of(place / "adapter"), timeless(report)
        known = self.wholes.setdefault(self._key(make), found)
        assert known[0].keys() == found[0].keys()
        assert [name for name in known[0] if known[0][name] != found[0][name]] == []
        assert known[1] == found[1]

    def _key(self, make: Sequence[str]) -> str:
        """The command with what it starts from."""
        read = [word.rpartition("=")[2] for word in make if str(self.folder) in word]
        files = [sorted(digests(adapter_in(Path(place))).items()) for place in read]
        return hashlib.sha256(json.dumps([list(make), files]).encode()).hexdigest()

    def _finished(self, out: str, make: Sequence[str], said: Said) -> None:
        place = self._at(out)
        told = next(line for line in said.err.splitlines() if line.startswith("files in "))
        names = told.partition(": ")[2].split()
        assert {name.removesuffix("/") for name in names} == {p.name for p in place.iterdir()}
        assert {"adapter/", "ranks.png", "report.json"} <= {*names}
        self._remember(place, make)
        report, (update, head, ranks) = self._report(out), stored_update(place)
        assert report.status == "completed"
        assert report.verification is not None
        assert report.verification.verdict == "same"
        assert {path: m.end for path, m in report.ranks.items() if m.end} == {
            path: rank for path, rank in ranks.items() if update[path].any()
        }
        if make[0] == "prune":
            assert all(rank <= 1 for rank in ranks.values())
        else:
            assert report.steps == STEPS
        thing = Thing(out, "run", self._key(make), update, head, ranks, make=tuple(make))
        assert report.metrics["validation"]["accuracy"] == pytest.approx(
            self._accuracy(thing), abs=self._near(thing)
        )
        self._wrote(replace(thing, lineage=self._lineage(place)))
