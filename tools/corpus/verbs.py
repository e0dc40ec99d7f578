"""The command lines that take an adapter, in an order in which some read what others wrote."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

ADAPTER, BASE, RECIPE, ROWS = "ADAPTER", "BASE", "RECIPE", "ROWS"
"""Words that stand for a kind's places."""
_PLACES = (ADAPTER, BASE, RECIPE, ROWS)
_GGUF = ("f16", "f32", "q8_0", "base")


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        name: of the row.
        words: of the command line; a word such as `merge/plain` is what that step has written.
        output: the ending of the name of what it writes; None: it only prints.
        option: of the output.
        kinds: a pattern of the kinds that it is run on.
    """

    name: str
    words: Sequence[str]
    output: str | None = None
    option: str = "-o"
    kinds: str = "*"


def _reading() -> Iterator[Step]:
    yield Step("inspect", ["inspect", ADAPTER, "--modules"])
    yield Step("inspect/json", ["inspect", ADAPTER, "--json"])
    yield Step("inspect/serve", ["inspect", ADAPTER, "--serve"])
    yield Step("inspect/two", ["inspect", ADAPTER, ADAPTER])


def _writing() -> Iterator[Step]:
    """Yield the steps that write adapters, and open some of their results again."""
    cuts = {
        "zeros": "",
        "rank": "--rank 1",
        "energy": "--energy 0.5",
        "max-params": "--max-params 900",
        "mean-rank": "--mean-rank 1.5",
        "bits": "--bits 4",
        "bits-head": "--rank 2 --bits 3 --head-bits 8",
    }
    for name, words in cuts.items():
        yield Step(f"prune/{name}", ["prune", ADAPTER, *words.split()], "")
    yield Step("prune/bits/inspect", ["inspect", "prune/bits", "--json"])
    exports = {
        "padded": "--layout padded",
        "bfloat16": "--dtype bfloat16",
        "rank": "--rank 2 --json",
        "energy": "--energy 0.9 --layout padded",
    }
    yield Step("export/exact", ["export", ADAPTER], "")  # with its check
    for name, words in exports.items():
        yield Step(f"export/{name}", ["export", ADAPTER, *words.split(), "--no-verify"], "")
    yield Step("export/exact/inspect", ["inspect", "export/exact", "--json"])
    for name in ("f32", "f16"):
        words = f"export {ADAPTER} --format gguf --type {name}"
        yield Step(f"export/gguf-{name}", words.split(), ".gguf")
    yield Step("export/packed", ["export", "prune/bits", "--format", "packed"], ".safetensors")
    yield Step("export/packed/inspect", ["inspect", "export/packed", "--json"])
    yield Step("export/packed/peft", ["export", "export/packed", "--no-verify"], "")
    sums = {
        "mean": ADAPTER,
        "cut": f"{ADAPTER} --weights 0.7,0.4 --rank 2 --dtype bfloat16 --json",
        "ties": "prune/rank --method ties --rank 3",
        "dare": "prune/rank --method dare --seed 1 --energy 0.9",
        "pruned": "prune/rank --weights 1,-0.5",
    }
    for name, words in sums.items():
        yield Step(f"combine/{name}", ["combine", ADAPTER, *words.split()], "")


def _merging() -> Iterator[Step]:
    """Yield the steps that write models, and what reads those."""
    yield Step("merge/plain", ["merge", ADAPTER], "")  # with its check
    merges = {
        "untied": "--untie",
        "bfloat16": "--dtype bfloat16 --accept-loss",
        "stochastic": "--dtype bfloat16 --round stochastic --seed 1",
        "float32": "--dtype float32",
        "base": f"--base {BASE}",
    }
    for name, words in merges.items():
        yield Step(f"merge/{name}", ["merge", ADAPTER, *words.split(), "--no-verify"], "")
    yield Step("merge/exported", ["merge", "export/exact", "--no-verify"], "")
    yield Step("merge/packed", ["merge", "export/packed", "--no-verify"], "")
    for name in _GGUF:
        words = f"merge {ADAPTER} --format gguf --type {name} --accept-loss"
        yield Step(f"merge/gguf-{name}", words.split(), ".gguf")
    extract = ["extract", "merge/plain", "--base", BASE]
    yield Step("extract/rank", [*extract, "--rank", "2"], "")
    yield Step("extract/energy", [*extract, "--energy", "0.9", "--no-biases", "--json"], "")


def _comparing() -> Iterator[Step]:
    yield Step("verify/itself", ["verify", ADAPTER, ADAPTER])
    yield Step("verify/base", ["verify", ADAPTER, BASE, "--json"])
    yield Step("verify/merged", ["verify", ADAPTER, "merge/untied"])
    yield Step("verify/reloaded", ["verify", ADAPTER], kinds="*/chat*")  # seconds each


def _using() -> Iterator[Step]:
    """Yield the steps that need a recipe for the base model."""
    yield Step("predict/rows", ["predict", ADAPTER, ROWS], ".jsonl")
    yield Step("eval", ["eval", ADAPTER, "-r", RECIPE])
    for steps in (0, 2):
        words = f"train {RECIPE} --no-verify start.adapter={ADAPTER} training.max_steps={steps}"
        yield Step(f"start/{steps}", words.split(), "", "output.dir=")


STEPS = [*_reading(), *_writing(), *_merging(), *_comparing(), *_using()]
PICKS = [
    Step("pick/keep", ["pick", ADAPTER, "--keep", "0.5"], ""),
    Step("pick/params", ["pick", ADAPTER, "--max-params", "100000", "--json"], ""),
]
"""The steps for a run of `sora path`, beside the others."""


def matches(name: str, patterns: str) -> bool:
    """Return true if one of some patterns, with commas between them, matches a name."""
    return any(fnmatch(name, pattern) for pattern in patterns.split(","))


def command(step: Step, places: Mapping[str, Path], done: Mapping[str, Path]) -> list[str] | None:
    """Return a step's words in a kind's places; None if something that it reads is not there.

    Args:
        done: name of an earlier step -> what it has written.
    """
    names = {step.name for step in STEPS if step.output is not None}
    known = {**places, **done}
    words = []
    for word in step.words:
        key, equals, value = word.rpartition("=")
        if value in known:
            value = str(known[value])
        elif value in names or value in _PLACES:
            return None
        words.append(f"{key}{equals}{value}")
    return words
