"""Steps drawn by hypothesis; as a program it looks for faults for a time.

    python -m tests.machine.machine SECONDS [SEED]

A fault's steps are printed, shortest first, and kept in `sequences/`, which the tests replay.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
import time
from pathlib import Path
from typing import ClassVar

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.machine.place import METHODS, STEPS, Origin
from tests.machine.steps import Steps

SEQUENCES = Path(__file__).parent / "sequences"
_MOST_RUNS, _MOST_THINGS = 5, 12
_RULES = (
    "", "--rank 1", "--rank 2", "--rank 9", "--energy 0.8", "--mean-rank 1.5", "--max-params 60",
    "--bits 4", "--bits 8 --head-bits 8", "--bits 3 --rank 1", "--max-drop 40pt --recipe RECIPE",
)  # fmt: skip
_FORMS = ("", "--layout padded", "--dtype bfloat16")

method = st.sampled_from(sorted(METHODS))
some = st.integers(0, _MOST_THINGS)
"""A number for one of the things that are there."""
step = st.integers(1, STEPS)
place = st.sampled_from(["new"] * 5 + ["over", "force"])
"""The output: a new name, or another thing's, with or without --force."""


class Machine(RuleBasedStateMachine):
    """Commands in any order; `Steps` has the checks."""

    origin: ClassVar[Origin]
    folder: ClassVar[Path]

    def __init__(self) -> None:
        super().__init__()
        self.shop = Steps(self.origin, self.folder)
        self.runs = 0

    def name(self, number: int, kinds: str = "") -> str:
        """One of the things, of these kinds if there are any."""
        things = self.shop.things.values()
        names = [t.name for t in things if t.kind in kinds.split()] or [t.name for t in things]
        return names[number % len(names)] if names else "nothing"

    def output(self, kind: str, place: str, number: int) -> tuple[str, str]:
        """The name of an output, and the flag that goes with it."""
        busy = {t.make[0] for t in self.shop.things.values() if t.kind == "stopped"}
        if place == "new" or (place == "force" and busy):  # a stopped run may read any of them
            end = ".safetensors" if kind == "packed" else ""
            return f"{kind}{len(self.shop.steps)}{end}", ""
        return self.name(number), " --force" if place == "force" else ""

    @initialize(method=method)
    def first(self, method: str) -> None:
        self.shop.do(f"train first {method}")

    @precondition(lambda self: self.runs < _MOST_RUNS)
    @rule(method=method, place=place, number=some, start=st.none() | some)
    def train(self, method: str, place: str, number: int, start: int | None) -> None:
        self.runs += 1
        out, force = self.output("run", place, number)
        self.shop.do(f"train {out} {method}{self._start(start)}{force}")

    @precondition(lambda self: self.runs < _MOST_RUNS)
    @rule(method=method, place=place, number=some, at=step, start=st.none() | some)
    def stop(self, method: str, place: str, number: int, at: int, start: int | None) -> None:
        self.runs += 1
        out, force = self.output("run", place, number)
        self.shop.do(f"stop {out} {method} {at}{self._start(start)}{force}")

    def _start(self, number: int | None) -> str:
        return "" if number is None else f" start={self.name(number)}"

    @precondition(lambda self: any(t.make for t in self.shop.things.values()))
    @rule(number=some, at=st.none() | step)
    def resume(self, number: int, at: int | None) -> None:
        name = self.name(number, "stopped run")
        thing = self.shop.things[name]
        if thing.kind in ("stopped", "run"):
            self.shop.do(f"resume {name}{'' if at is None or thing.kind == 'run' else f' {at}'}")

    @precondition(lambda self: self.runs < _MOST_RUNS)
    @rule(source=some, place=place, number=some, steps=st.sampled_from([0, 2]), at=st.booleans())
    def heal(self, source: int, place: str, number: int, steps: int, at: bool) -> None:
        self.runs += 1
        stop = " stop=1" if at and steps else ""
        out, force = self.output("healed", place, number)
        self.shop.do(f"heal {self.name(source)} {out} {steps}{stop}{force}")

    @rule(source=some, place=place, number=some, words=st.sampled_from(_RULES))
    def prune(self, source: int, place: str, number: int, words: str) -> None:
        out, force = self.output("cut", place, number)
        self.shop.do(f"prune {self.name(source)} {out} {words}{force}")

    @rule(source=some, place=place, number=some)
    def round_and_pack(self, source: int, place: str, number: int) -> None:
        rounded = [t.name for t in self.shop.things.values() if t.bits]
        name = rounded[source % len(rounded)] if rounded else self.name(source)
        out, force = self.output("packed", place, number)
        self.shop.do(f"pack {name} {out}{force}")

    @rule(source=some, place=place, number=some, words=st.sampled_from(_FORMS))
    def export(self, source: int, place: str, number: int, words: str) -> None:
        out, force = self.output("copy", place, number)
        self.shop.do(f"export {self.name(source)} {out} {words}{force}")

    @rule(source=some, place=place, number=some)
    def merge(self, source: int, place: str, number: int) -> None:
        out, force = self.output("model", place, number)
        self.shop.do(f"merge {self.name(source)} {out}{force}")

    @precondition(lambda self: any(t.folded for t in self.shop.things.values()))
    @rule(source=some, base=some, place=place, number=some)
    def stack(self, source: int, base: int, place: str, number: int) -> None:
        out, force = self.output("model", place, number)
        self.shop.do(f"stack {self.name(source)} {self.name(base, 'merged')} {out}{force}")

    @rule(first=some, second=some, place=place, number=some)
    def combine(self, first: int, second: int, place: str, number: int) -> None:
        out, force = self.output("sum", place, number)
        self.shop.do(f"combine {self.name(first)} {self.name(second)} {out}{force}")

    @rule(first=some, second=some)
    def verify(self, first: int, second: int) -> None:
        self.shop.do(f"verify {self.name(first)} {self.name(second)}")

    @rule(source=some, verb=st.sampled_from(["eval", "predict", "push"]))
    def look(self, source: int, verb: str) -> None:
        self.shop.do(f"{verb} {self.name(source)}")


def drawn(examples: int, steps: int, *, fixed: bool = True) -> settings:
    """Settings that draw the same steps each time, or others each time."""
    return settings(
        max_examples=examples,
        stateful_step_count=steps,
        derandomize=fixed,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate] if fixed else [Phase.generate, Phase.shrink],
    )


def work_in(folder: Path) -> type[Machine]:
    """The machine with a base and rows of its own, and a directory to work in."""

    return type(
        "Here", (Machine,), {"origin": Origin(folder / "origin"), "folder": folder / "work"}
    )


def replay(machine: type[Machine], file: Path) -> None:
    """Take the steps of a file; # begins a remark."""
    shop = Steps(machine.origin, machine.folder)
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.strip() and not line.startswith("#"):
            shop.do(line)


def hunt(seconds: float, seed: int) -> int:
    """Draw steps until the time is over or a fault is found; return an exit code."""
    from hypothesis import seed as seeded

    end = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as scratch:
        machine = work_in(Path(scratch))
        while time.monotonic() < end:
            print(f"seed {seed}", flush=True)  # noqa: T201
            try:
                run_state_machine_as_test(
                    seeded(seed)(lambda: machine()), settings=drawn(10, 20, fixed=False)
                )
            except Exception as error:
                faults = error.exceptions if isinstance(error, ExceptionGroup) else (error,)
                notes = [note for note in faults[0].__notes__ if note.startswith("steps:")]
                text = notes[-1].replace("steps:\n", "").replace("\n  ", "\n").strip() + "\n"
                name = hashlib.sha256(text.encode()).hexdigest()[:8]
                (SEQUENCES / f"found-{name}.txt").write_text(text, encoding="utf-8")
                raise
            seed += 1
    return 0


if __name__ == "__main__":
    from tests import blank

    blank.install()
    sys.exit(hunt(float(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0))
