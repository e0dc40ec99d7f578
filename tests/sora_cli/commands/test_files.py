"""No command writes over a file that it reads, by any name, nor two outputs into one place.

Every output of every command is given the name of every input. `python -m
tests.sora_cli.commands.test_files` prints the table.
"""

from __future__ import annotations

import io
import os
import shutil
import struct
import tempfile
from collections.abc import Iterator
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from inspect import unwrap
from pathlib import Path
from typing import Annotated, get_args, get_origin, get_type_hints

import pytest
import torch
from typer.models import ArgumentInfo, OptionInfo

from methods import registry
from methods.factors import LowRankFactors
from sora_cli.adapter.adapter import Adapter
from sora_cli.adapter.directory import write_adapter
from sora_cli.adapter.metadata import AdapterMeta, BaseReference
from sora_cli.core.console import emit
from sora_cli.recipe.library import recipes_dir
from sora_cli.report import RunReport
from sora_cli.verify.server import Server
from tests.helpers_errors import called
from tests.helpers_families import retrieval_rows
from tests.helpers_models import tiny_bert
from tests.helpers_reports import write_report
from tests.helpers_runs import pair_rows, save_base, write_rows
from tests.sora_cli.bad_input.runner import RECIPE, snapshot
from tests.sora_cli.bad_input.test_search import SEARCH
from tests.sora_cli.experiments.path.support import made_report
from tools.reference.commands import commands

PARENT = RECIPE.partition("output:")[0]
CHILD = "extends: parent.yaml\noutput: {dir: out}\n"
OF_PATH = (
    "extends: child.yaml\npath: {vary: method.threshold, schedule: {start: 0, stop: 1, num: 2}}\n"
)
CODE = """\
from methods.lora import Lora

class FilesLora(Lora):
    name = "lora_of_the_test_of_files"
"""
RUN = ("run/report.json", "run/adapter", "run/adapter/adapter_model.safetensors")
BASE = ("models/base", "models/base/model.safetensors")
OTHER = ("other", "other/adapter_config.json")
ROWS = ("train.jsonl", "validation.jsonl")
FOLDERS = ("run/adapter", "models/base", "other", "tuned", str(recipes_dir()))
OF_RECIPE = ("child.yaml", "parent.yaml", *ROWS)
LABELS = ("--max-drop", "9pt", "--unlabelled", "rows.csv", "--ask", "ask.csv")
PROMISE = ("-r", "child.yaml", *LABELS)
CODED = ("--code", "mine.py")
OWN = "{run}"
"""In the place of an output: a directory in which a run's own file is the input."""


@dataclass(frozen=True)
class Writes:
    """One output of a command, and the files that the command then reads.

    Attributes:
        words: with {} for the output.
        suffix: ending that the output must have; "/" for a directory.
        own: file of the output directory that is made to be the input.
    """

    words: tuple[str, ...]
    reads: tuple[str, ...]
    suffix: str = ""
    own: str = ""


def _trains(command: str, recipe: str, *words: str, own: str = "history.json") -> Writes:
    return Writes(
        (command, recipe, "output.dir={}", *words, "--force", *CODED),
        (*OF_RECIPE, *BASE[1:], "mine.py"), own=own,
    )  # fmt: skip


SWEPT = "swept/s0/history.json"
STUDY = ("study/a/report.json", "study/a/history.json")
GATE = ("verify", "run", "other", *PROMISE, "--force", *CODED)
GATED = (*RUN, *OTHER, *BASE, *OF_RECIPE, "rows.csv", "mine.py")
PRUNE = ("prune", "run", *PROMISE, "--force", *CODED)
EXTRACT = ("extract", "tuned", "--base", "models/base", *PROMISE, "--force", *CODED)
FROM_RUN = (*RUN, *BASE)
SHRUNK = (*FROM_RUN, *OF_RECIPE, "rows.csv", "mine.py")
EXTRACTED = ("tuned", "tuned/model.safetensors", *BASE, *OF_RECIPE, "rows.csv", "mine.py")


def _asked(words: tuple[str, ...]) -> tuple[str, ...]:
    """The same words with {} for the table."""
    return tuple("{}" if word == "ask.csv" else word for word in words)


WRITES: dict[str, Writes] = {
    "train": _trains("train", "child.yaml"),
    "train --resume": _trains("train", "child.yaml", "--resume"),
    "train, a start": Writes(
        ("train", "child.yaml", "output.dir={}", "start.adapter=run", "--force"),
        RUN,
        own="ranks.png",
    ),
    "path": _trains("path", "of_path.yaml", own="path.png"),
    "auto": _trains("auto", "child.yaml", "--max-drop", "9pt", own="curve.png"),
    "auto --ask": Writes(
        _asked(("auto", "child.yaml", *LABELS, *CODED)), (*OF_RECIPE, "rows.csv", "mine.py"), ".csv"
    ),
    "sweep": Writes(
        ("sweep", "sweep.yaml", "output.dir=swept", f"data.files.train={SWEPT}", *CODED), (SWEPT,)
    ),
    "prune -o": Writes((*PRUNE, "-o", "{}"), SHRUNK, "/"),
    "prune -o, no promise": Writes(("prune", "run", "-o", "{}", "--force"), FROM_RUN, "/"),
    "prune --ask": Writes((*_asked(PRUNE), "-o", "new"), SHRUNK, ".csv"),
    "prune --heal": Writes(
        ("prune", "run", "-o", "{}", "-r", "child.yaml", "--heal", "1", "--rank", "1", "--force"),
        (*FROM_RUN, *OF_RECIPE),
        own="history.json",
    ),
    "prune --heal --ask": Writes((*_asked(PRUNE), "-o", "new", "--heal", "1"), SHRUNK, ".csv"),
    "extract -o": Writes((*EXTRACT, "-o", "{}"), EXTRACTED, "/"),
    "extract --ask": Writes((*_asked(EXTRACT), "-o", "new"), EXTRACTED, ".csv"),
    "merge -o": Writes(("merge", "run", "-o", "{}", "--force"), FROM_RUN, "/"),
    "merge --format gguf": Writes(
        ("merge", "run", "-o", "{}", "--format", "gguf", "--base", "base.gguf", "--force"),
        ("base.gguf",),
        ".gguf",
    ),
    "export -o": Writes(("export", "run", "-o", "{}", "--force"), FROM_RUN, "/"),
    "export --format gguf": Writes(
        ("export", "run", "-o", "{}", "--format", "gguf", "--base", "base.gguf", "--force"),
        (*FROM_RUN, "base.gguf"),
        ".gguf",
    ),
    "export --format packed": Writes(
        ("export", "run", "-o", "{}", "--format", "packed", "--force"), FROM_RUN, ".safetensors"
    ),
    "combine": Writes(("combine", "run", "other", "-o", "{}", "--force"), (*FROM_RUN, *OTHER), "/"),
    "predict": Writes(
        ("predict", "run", "rows.csv", "-o", "{}", "--force", *CODED),
        (*FROM_RUN, "rows.csv", "mine.py"),
        ".csv",
    ),
    "predict --corpus": Writes(
        (
            "predict",
            "models/base",
            "rows.csv",
            "-o",
            "{}",
            "--task",
            "embedding",
            "--corpus",
            "corpus.jsonl",
            "--force",
        ),
        ("corpus.jsonl", "rows.csv", *BASE),
        ".jsonl",
    ),
    "eval": Writes(
        ("eval", "run", "-r", "child.yaml", "--predictions", "{}", "--force", *CODED),
        (*FROM_RUN, *OF_RECIPE, "mine.py"),
    ),
    "eval, a corpus": Writes(
        ("eval", "other", "-r", "search.yaml", "--predictions", "{}", "--force"),
        ("corpus.jsonl", "search.jsonl", "search.yaml", *OTHER),
    ),
    "verify -o": Writes((*GATE, "-o", "{}"), GATED),
    "verify --ask": Writes((*_asked(GATE), "-o", "new.json"), GATED, ".csv"),
    "verify, of a run": Writes(
        ("verify", "run", "other", "--max-drop", "9pt", "-o", "{}", "--force"),
        (*RUN, *BASE, *ROWS),
    ),
    "verify, from files": Writes(
        (
            "verify",
            "run",
            "other",
            "--max-differ",
            "9%",
            "--unlabelled",
            "rows.csv",
            "-o",
            "{}",
            "--force",
        ),
        (*RUN, *OTHER, *BASE, "rows.csv"),
    ),
    "verify --server": Writes(
        (
            "verify",
            "run",
            "--server",
            "http://localhost:1/v1",
            "-r",
            "child.yaml",
            "--max-drop",
            "9pt",
            "-o",
            "{}",
            "--force",
        ),
        (*FROM_RUN, *OF_RECIPE),
    ),
    "inspect": Writes(("inspect", "run", "--plot", "{}", "--force"), FROM_RUN),
    "report": Writes(
        ("report", "run", "-o", "{}", "--predictions", "seen.jsonl", "--force", *CODED),
        (*RUN, "seen.jsonl", "mine.py"),
    ),
    "report --examples": Writes(
        ("report", "run", "-o", "{}", "--examples", "1", "--force"), (*RUN, *ROWS, *BASE)
    ),
    "compare -o": Writes(("compare", "study", "-o", "{}", "--format", "csv", "--force"), STUDY),
    "compare --plot": Writes(("compare", "study", "--plot", "{}", "--force"), STUDY, ".png"),
    "init": Writes(
        ("init", "train.jsonl", "-o", "{}", "--model", "models/base", "--force", *CODED),
        ("train.jsonl", "models/base", "mine.py"),
        ".yaml",
    ),
    "pick": Writes(
        ("pick", "a-path", "-o", "{}", "--keep", "0.9", "--force"), ("a-path/path.json",), "/"
    ),
    "recipes copy": Writes(
        ("recipes", "copy", "quickstart", "--to", "{}", "--force"),
        (str(recipes_dir() / "quickstart.yaml"),),
        own="quickstart.yaml",
    ),
}
"""By command and output."""
TWICE = {
    "verify -o --ask": (*GATE, "-o", "ask.csv"),
    "verify -o, the memory": (*GATE, "-o", "ask.csv.json"),
    "verify -o, the guide": (*GATE, "-o", "ask.txt"),
    "prune": (*_asked(PRUNE), "-o", "new"),
    "extract": (*_asked(EXTRACT), "-o", "new"),
    "compare": ("compare", "study", "-o", "new.png", "--plot", "new.png", "--format", "csv"),
    "compare, beside": ("compare", "study", "-o", "new-curves.png", "--plot", "new.png",
                        "--format", "csv"),
}  # fmt: skip
"""Two outputs in one place."""

WRITTEN = {
    ("auto", "ask"), ("compare", "output"), ("compare", "plot"), ("combine", "output"),
    ("copy_recipes", "to"), ("evaluate", "predictions"), ("export", "output"), ("extract", "ask"),
    ("extract", "output"), ("init", "output"), ("inspect", "plot"), ("merge", "output"),
    ("pick", "output"), ("predict", "output"), ("prune", "ask"), ("prune", "output"),
    ("report", "output"), ("verify", "ask"), ("verify", "output"),
}  # fmt: skip
"""Function and option of each output; a run's directory is a key of its recipe, not an option."""
READ = {
    "a", "adapters", "b", "base", "code", "corpus", "data", "directories", "directory", "file",
    "model", "name", "names", "other", "overrides", "predictions", "recipe", "run", "runs",
    "source", "target", "targets", "unlabelled",
}  # fmt: skip
"""Options and arguments that name a place to read."""
NO_FILE = {
    "address", "all_", "base_id", "baseline", "budgets", "density", "dtype", "engine", "form",
    "keys", "label", "layout", "license_", "max_differ", "max_drop", "message", "method", "metric",
    "prefix", "prompt", "repository", "revision", "rounding", "serve", "server", "stream",
    "sort",
    "status",
    "system", "task", "type", "weights", "words",
}  # fmt: skip


def write_world(folder: Path) -> None:
    """A directory with every kind of input."""
    write_rows(folder / "train.jsonl", pair_rows(60))
    (folder / SWEPT).parent.mkdir(parents=True)
    shutil.copy(folder / "train.jsonl", folder / SWEPT)
    write_rows(folder / "validation.jsonl", pair_rows(60, seed=1))
    write_rows(folder / "search.jsonl", retrieval_rows(12))
    documents = [{"id": str(i), "text": row["positive"]} for i, row in enumerate(retrieval_rows(9))]
    write_rows(folder / "corpus.jsonl", documents)
    write_rows(folder / "seen.jsonl", [{"split": "validation", "row": 0}])
    sentences = "".join(f"{r['sentence1']},{r['sentence2']}\n" for r in pair_rows(60, seed=2))
    texts = {
        "parent.yaml": PARENT, "child.yaml": CHILD, "of_path.yaml": OF_PATH, "mine.py": CODE,
        "rows.csv": f"sentence1,sentence2\n{sentences}",
        "search.yaml": SEARCH.replace("max_length", "corpus: corpus.jsonl, max_length"),
        "sweep.yaml": "recipe: child.yaml\ngrid: {training.seed: [0, 1]}\n",
        "a-path/path.json": made_report([0.9], [10]).model_dump_json(),
    }  # fmt: skip
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (folder / "base.gguf").write_bytes(_gguf())
    save_base(tiny_bert(num_labels=2), folder / "models" / "base")
    save_base(tiny_bert(num_labels=2), folder / "tuned")
    for place, seed in (("run/adapter", 0), ("other", 1)):
        g = torch.Generator().manual_seed(seed)
        factors = LowRankFactors(torch.randn(2, 32, generator=g), torch.randn(32, 2, generator=g))
        adapter = Adapter.of(
            layers={"bert.encoder.layer.0.attention.self.query": factors},
            head={"classifier.weight": torch.zeros(2, 32), "classifier.bias": torch.zeros(2)},
            head_modules=("classifier",), task_type="SEQ_CLS",
            base=BaseReference("models/base", "models/base"),
            meta=AdapterMeta(labels=("0", "1"), num_labels=2, task="sequence-classification"),
        )  # fmt: skip
        write_adapter(folder / place, adapter)
    write_report(folder / "study" / "a")
    write_report(folder / "study" / "b")
    with chdir(folder):
        from sora_cli.recipe.load import load_recipe

        stored = load_recipe("child.yaml").resolved()
    report = RunReport(name="run", recipe=stored, status="completed", started="2026-01-01")
    (folder / "run" / "report.json").write_text(report.model_dump_json())


def _gguf() -> bytes:
    """A file with one tensor, of a model with one layer."""
    key, name, count = b"general.architecture", b"llama", b"llama.block_count"
    fields = struct.pack("<Q20sIQ5s", len(key), key, 8, len(name), name)
    fields += struct.pack("<Q17sII", len(count), count, 4, 1)
    tensor = struct.pack("<Q1sIQIQ", 1, b"a", 1, 1, 0, 0)
    return b"GGUF" + struct.pack("<IQQ", 3, 1, 2) + fields + tensor + bytes(64)


def cases() -> Iterator[tuple[str, str, bool]]:
    """Every output with every input; each is named as it is, or by a link where names must end so.

    The last is true for a hard link, false for a symbolic one.
    """
    for number, (name, writes) in enumerate(WRITES.items()):
        for place, read in enumerate(writes.reads):
            # a hard link to a file of a directory would be replaced, and the file left as it is
            inside = any(read.startswith(f"{folder}/") for folder in FOLDERS)
            yield name, read, not inside and (number + place) % 2 == 0


def output_for(writes: Writes, read: str, *, hard: bool) -> str:
    """Return a name of the input, or of a place in it, that an output can have."""
    number = len(list(Path().glob("link*")))
    place = Path(read)
    if writes.own:
        folder = Path(f"link{number}")
        (folder / writes.own).parent.mkdir(parents=True)
        shutil.copy("run/report.json", folder / "report.json")
        _link(place, folder / writes.own, hard=hard)
        return str(folder)
    if place.is_dir() and writes.suffix != "/":
        return str(place / f"new{writes.suffix or '.json'}")
    if writes.suffix in ("/", place.suffix, ""):
        return f"missing/../{read}" if hard else read
    _link(place, Path(f"link{number}{writes.suffix}"), hard=hard)
    return f"link{number}{writes.suffix}"


def _link(place: Path, link: Path, *, hard: bool) -> None:
    if hard:
        os.link(place, link)
    else:
        link.symlink_to(place.resolve())


def refused(words: tuple[str, ...], output: str) -> tuple[int, str]:
    """Run a command; return its exit code and its error."""
    err = io.StringIO()
    with redirect_stderr(err), redirect_stdout(io.StringIO()):
        code = called([word.replace("{}", output) for word in words])
    return code, err.getvalue().partition("error: ")[2] or err.getvalue()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory, for all cases: none may change it."""
    folder = tmp_path_factory.mktemp("files")
    write_world(folder)
    return folder


@pytest.fixture
def world(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of a case."""
    monkeypatch.chdir(made)
    monkeypatch.setattr(registry, "_REGISTERED", {})  # of mine.py
    monkeypatch.setattr(Server, "choose", lambda *_: None)  # no server is asked
    return made


@pytest.mark.parametrize(("name", "read", "hard"), cases())
def test_no_output_is_an_input(world: Path, name: str, read: str, hard: bool) -> None:
    writes = WRITES[name]
    output = output_for(writes, read, hard=hard)
    before = snapshot(world)
    code, error = refused(writes.words, output)
    assert snapshot(world) == before
    assert code == 2, error
    assert "an input of this command" in error, error


@pytest.mark.parametrize("words", TWICE.values(), ids=TWICE)
def test_no_two_outputs_are_in_one_place(world: Path, words: tuple[str, ...]) -> None:
    before = snapshot(world)
    code, error = refused(words, "new/ask.csv")
    assert snapshot(world) == before
    assert code == 2, error
    assert "two outputs of this command" in error, error


def test_every_option_with_a_text_is_a_known_output_or_input_or_no_file() -> None:
    written, unknown = set(), list[str]()
    for _, command in commands():
        function = unwrap(command.callback) if command.callback else None
        for name, hint in get_type_hints(command.callback, include_extras=True).items():
            if get_origin(hint) is not Annotated:
                continue
            kind, info, *_ = get_args(hint)
            kinds = {kind, *get_args(kind), *(k for part in get_args(kind) for k in get_args(part))}
            if not isinstance(info, OptionInfo | ArgumentInfo) or not kinds & {str, Path}:
                continue
            if (function.__name__, name) in WRITTEN:
                written.add((function.__name__, name))
            elif name not in READ | NO_FILE:
                unknown.append(f"{function.__name__} {name}")
    assert not unknown, "add a case above"
    assert written == WRITTEN


def main() -> None:
    """Print the table: each output, and of each of its inputs what became of it."""
    Server.choose = lambda *_: None  # type: ignore[assignment, method-assign]
    for name, writes in WRITES.items():
        found: dict[str, list[str]] = {}
        for read in writes.reads:
            with tempfile.TemporaryDirectory() as folder, chdir(folder):
                write_world(Path())
                output = output_for(writes, read, hard=False)
                before = snapshot(Path())
                code, error = refused(writes.words, output)
                lost = before.items() - snapshot(Path()).items()
            registry._REGISTERED.clear()  # of mine.py
            known = "an input of this command" in error
            ends = "LOST" if lost else "refused" if known else f"exit code {code}"
            found.setdefault(ends, []).append(read)
        shown = (f"{what}: {', '.join(inputs)}" for what, inputs in found.items())
        emit(f"{name}: {'; '.join(shown)}")


if __name__ == "__main__":
    main()
