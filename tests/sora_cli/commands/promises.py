"""Promises of every kind, each made once: by which command, about what, tested on which rows.

    command    the metric on labelled rows   answers          the metric, by answers
    auto       --max-drop (also repeats)     --max-differ     --max-drop --unlabelled
    prune      --max-drop --recipe           --max-differ     --max-drop --unlabelled
    heal       prune --heal --max-drop ...
    extract    --max-drop --recipe           --max-differ     --max-drop --unlabelled

`Made` is what a command of a kind wrote and said; nobody writes into it. `record_of` reads what is
recorded of the promise.
"""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from sora_cli.app import run
from sora_cli.report import read_report
from tests.helpers_models import tiny_bert
from tests.helpers_runs import files_of, pair_rows, train, write_recipe, write_rows
from tests.sora_cli.experiments.auto.support import auto_recipe, certificate_of, recipe_with_inputs

LABELLED, OTHERS = 30, 80
"""Rows of a finished adapter's promise."""
STOCK = 6  # inputs that are repeated ten times each, beside 100 others
LABELS, ANSWERS, BY_ANSWERS = "labels", "answers", "by answers"
REPEATS = "repeats"


@dataclass(frozen=True)
class Kind:
    """A promise, and the command that makes it.

    Attributes:
        command: auto, prune, heal or extract.
        recipe: writes the files that the command reads, and returns the recipe.
        words: options; FOLDER is the recipe's directory.
        promise: kind, given, largest drop, and what tests it.
        metric: as it is recorded.
        rows: of a search, each part's split and number; else the number of test rows.
        said: words that are told on the way.
        page: words of the page that `sora report` makes.
    """

    command: str
    recipe: Callable[[Path], Path]
    words: tuple[str, ...]
    promise: tuple[str, str, float, str]
    metric: str
    rows: Mapping[str, tuple[str, int]] | int
    said: tuple[str, ...] = ()
    page: str = ""
    codes: tuple[int, ...] = (0,)

    def line(self, recipe: Path, out: Path, *more: str) -> list[str]:
        """Return the command line."""
        folder = recipe.parent
        given = [word.replace("FOLDER", str(folder)) for word in self.words]
        if self.command == "auto":
            return ["auto", str(recipe), *given, "--no-verify", f"output.dir={out}", *more]
        if self.command == "extract":
            source = ["extract", str(folder / "whole"), "--base", str(folder / "base")]
        else:
            source = ["prune", str(folder / "out")]
        heal = ["--heal", "2", "--no-verify"] if self.command == "heal" else []
        return [*source, "-o", str(out), *heal, *given, *more]


@dataclass(frozen=True)
class Made:
    """What a command wrote and said."""

    kind: Kind
    recipe: Path
    out: Path
    code: int
    stdout: str
    stderr: str

    @property
    def told(self) -> str:
        """Everything that was said, with single spaces."""
        return " ".join((self.stdout + self.stderr).split())

    def line(self, out: Path, *more: str) -> list[str]:
        """The same command with another output."""
        return self.kind.line(self.recipe, out, *more)


def make(kind: Kind, recipe: Path, out: Path, *more: str) -> Made:
    """Run the command of a kind."""
    stdout, stderr = io.StringIO(), io.StringIO()
    with redirect_stdout(stdout), redirect_stderr(stderr):
        code = run(kind.line(recipe, out, *more))
    made = Made(kind, recipe, out, code, stdout.getvalue(), stderr.getvalue())
    assert code in kind.codes, made.stderr
    return made


class Makers:
    """Makes each kind when it is first asked for; kinds with one recipe share its files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.recipe = cache(self._recipe)
        self.of = cache(self._of)

    def _recipe(self, write: Callable[[Path], Path]) -> Path:
        folder = self._folder / write.__name__
        folder.mkdir()
        return write(folder)

    def _of(self, name: str) -> Made:
        kind = KINDS[name]
        return make(kind, self.recipe(kind.recipe), self._folder / name.replace(" ", "-"))


def labelled(folder: Path) -> Path:
    return auto_recipe(folder)


def with_inputs(folder: Path) -> Path:
    return recipe_with_inputs(folder)


def repeated(folder: Path) -> Path:
    path = auto_recipe(folder, auto={"rows": 80})
    rows = pair_rows(100 + STOCK, seed=3)
    made = [*rows[STOCK:], *(row for row in rows[:STOCK] for _ in range(10))]
    random.Random(0).shuffle(made)
    write_rows(folder / "train.jsonl", made)
    return path


def finished(folder: Path) -> Path:
    """A run in out/, a whole model in whole/; of the inputs 10 are training rows, 10 labelled."""
    path = write_recipe(
        folder, tiny_bert(num_labels=2), method={"threshold": 0.0}, training={"max_steps": 8}
    )
    held = pair_rows(LABELLED, seed=1)
    write_rows(folder / "validation.jsonl", held)
    others = pair_rows(OTHERS, seed=4)
    write_rows(folder / "others.jsonl", others)
    write_rows(folder / "inputs.jsonl", [*pair_rows(10), *held[:10], *others])
    train(path)
    train(path, "method.name=full", "training.learning_rate=0.001", f"output.dir={folder}/whole")
    return path


_INPUTS = ("--unlabelled", "FOLDER/inputs.jsonl")
_RECIPE = ("--recipe", "FOLDER/tiny.yaml")
_PARTS = {"validation": ("validation", 24)}
_HELD = {**_PARTS, "train": ("train", 64), "screening": ("train", 15), "test": ("train", 45)}
_APART = {**_PARTS, "train": ("train", 124), "screening": ("unlabelled", 25),
          "test": ("unlabelled", 75)}  # fmt: skip


def _finished(command: str, what: str, most: str) -> Kind:
    """A promise about a finished adapter, or of a model."""
    recipe = () if command == "heal" else _RECIPE
    share = float(most) / 100
    if what == ANSWERS:
        named = "the model" if command == "extract" else "the uncut adapter"
        return Kind(
            command, finished, ("--max-differ", f"{most}%", *_INPUTS, *recipe),
            ("differ", f"{most}%", share, ANSWERS), "accuracy", OTHERS + 10,
            said=(
                "answers to the columns 'sentence1', 'sentence2' are compared",
                "10 of 100 rows of", "are training rows: they are left out",
                "the column 'label' is ignored", f"of the answers differ from {named}'s",
            ),
        )  # fmt: skip
    words = ("--max-drop", f"{most}pt", *recipe)
    if what == LABELS:
        said = (f"{LABELLED} test rows can be expected to certify",)
        return Kind(command, finished, words, ("drop", f"{most}pt", share, LABELS), "accuracy",
                    LABELLED, said=said)  # fmt: skip
    return Kind(
        command, finished, (*words, *_INPUTS, "auto.basis=answers"),
        ("drop", f"{most}pt", share, ANSWERS), "accuracy", OTHERS,
        said=(
            "answers to rows without labels test the drop, and labels do not",
            "20 of 100 rows of", "are labelled rows of the recipe: they are left out",
        ),
    )  # fmt: skip


KINDS = {
    f"auto {LABELS}": Kind(
        "auto", labelled, (), ("drop", "50pt", 0.5, LABELS), "accuracy", _HELD,
        page="accuracy at most 50pt worse than at full rank",
    ),
    f"auto {ANSWERS}": Kind(
        "auto", with_inputs, ("--max-differ", "60%", *_INPUTS, "--json"),
        ("differ", "60%", 0.6, ANSWERS), "accuracy", _APART,
        said=("of the answers are expected to differ before healing", "differing answers: "),
        page="at most 60% of the answers differ from full rank&#39;s",
    ),
    f"auto {BY_ANSWERS}": Kind(
        "auto", with_inputs, ("--max-drop", "60pt", *_INPUTS, "auto.basis=answers"),
        ("drop", "60pt", 0.6, ANSWERS), "accuracy", _APART,
        page="accuracy at most 60pt worse than at full rank, by the share of answers that",
    ),
    f"auto {REPEATS}": Kind(
        "auto", repeated, ("--max-drop", "smallest"), ("drop", "smallest", 0.0, LABELS), "accuracy",
        {**_PARTS, "train": ("train", 0), "screening": ("train", 0), "test": ("train", 0)},
        said=("(smallest), with 95% confidence",), page="worse than at full rank", codes=(0, 3),
    ),
    **{
        f"{command} {what}": _finished(command, what, most)
        for command, most in (("prune", "40"), ("heal", "60"), ("extract", "60"))
        for what in (LABELS, ANSWERS, BY_ANSWERS)
    },
}  # fmt: skip
SEARCHES = [name for name, kind in KINDS.items() if kind.command == "auto"]
OTHER = [name for name in KINDS if name not in SEARCHES]


@dataclass(frozen=True)
class Size:
    """A size with its test."""

    components: int
    parameters: int
    drop: float
    upper: float | None
    passed: bool
    differing: int | None = None


@dataclass(frozen=True)
class Record:
    """What is recorded of a promise.

    Attributes:
        promise: its largest drop, and what tests it.
        sizes: all sizes that were made, in that order.
        chosen: the place of the written one; None: the whole adapter.
    """

    promise: tuple[float, str]
    metric: str
    confidence: float
    certified: bool
    rows: int
    sizes: Sequence[Size]
    chosen: int | None
    given: str
    whole: Size

    @property
    def written(self) -> Size:
        return self.whole if self.chosen is None else self.sizes[self.chosen]


def record_of(made: Made) -> Record:
    """Read the certificate that stands beside what a promise made."""
    found = certificate_of(made.out)
    sizes = [
        Size(size.components, size.parameters, size.test.drop, size.test.upper, size.test.kept,
             size.test.differing)
        for size in found.candidates if size.test is not None
    ]  # fmt: skip
    promise = found.promise
    return Record(
        (promise.max_drop, promise.basis), promise.metric, promise.confidence, found.certified,
        found.rows["test"].rows, sizes, found.chosen, promise.given,
        Size(found.full.components, found.full.parameters, 0.0, None, True),
    )  # fmt: skip


def same_end(one: Path, other: Path) -> None:
    """All adapters are the same to the byte, and what is promised of them."""
    for place in sorted(one.rglob("adapter")):
        name = place.relative_to(one)
        assert files_of(place) == files_of(other / name), name
    told = [json.loads((place / "certificate.json").read_text()) for place in (one, other)]
    for found in told:  # all but the name of the output
        found["recipe"] = found["recipe"] and {**found["recipe"], "output": None}
    assert told[0] == told[1]
    first, second = read_report(one), read_report(other)
    assert first is not None
    assert second is not None
    assert first.metrics == second.metrics
    assert first.ranks == second.ranks
