"""Files and directories that are there already, by any name: no command replaces them unasked."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from inspect import unwrap
from pathlib import Path
from typing import Annotated, get_args, get_origin, get_type_hints

import pytest
from typer.models import OptionInfo

from sora_cli.app import run
from sora_cli.core.figures import new_figure, save_figure
from sora_cli.core.outputs import output_path
from sora_cli.report import FILE_NAME
from tests.helpers_reports import write_report
from tests.sora_cli.bad_input.runner import FINISHED, TRAIN, Case, bad
from tools.reference.commands import commands

RUN = {f"out/{FILE_NAME}": FINISHED}
FILES = {
    "init": ("new.yaml", "init", "train.jsonl", "-o"),
    "predict": ("new.csv", "predict", "models/adapter", "train.jsonl", "-o"),
    "eval": ("new.jsonl", "eval", "models/adapter", "-r", "r.yaml", "--predictions"),
    "inspect --plot": ("new.png", "inspect", "models/adapter", "--plot"),
    "compare -o": ("new.md", "compare", "out", "-o"),
    "compare --plot": ("new.png", "compare", "out", "--plot"),
    "report": ("new.html", "report", "out", "-o"),
    "export": ("new.gguf", "export", "models/adapter", "--format", "gguf", "-o"),
    "merge": ("new.gguf", "merge", "models/adapter", "--format", "gguf", "-o"),
}
"""A file's name, and the command that would write it."""
DIRECTORIES = {
    "prune": ("prune", "models/adapter"),
    "export": ("export", "models/adapter"),
    "merge": ("merge", "models/adapter"),
    "combine": ("combine", "models/adapter", "models/adapter"),
    "extract": ("extract", "models/base", "--base", "models/base", "--rank", "2"),
}
FROM_ELSEWHERE = "missing/../"
CASES: dict[str, Case] = {}
for _name, (_file, *_words) in FILES.items():
    for _prefix in ("", FROM_ELSEWHERE):
        CASES[f"{_prefix}{_name}"] = bad(*_words, f"{_prefix}{_file}",
        **{_file: "thesis"} | RUN)  # fmt: skip
    CASES[f"{_name} over a pipe"] = bad(*_words, _file, "--force",
        **{_file: lambda path: os.mkfifo(path)} | RUN)  # fmt: skip
for _name, _words in DIRECTORIES.items():
    CASES[f"{FROM_ELSEWHERE}{_name}"] = bad(*_words, "-o", f"{FROM_ELSEWHERE}own", "--force",
        **{"own/thesis.txt": "x"})  # fmt: skip
for _name in ("ranks", "curves"):
    CASES[f"compare --plot, the {_name}"] = bad("compare", "out", "--plot", "new.png",
        **{f"new-{_name}.png": "thesis"} | RUN)  # fmt: skip
for _prefix in ("", FROM_ELSEWHERE):
    CASES[f"{_prefix}train --dry-run"] = bad(
        *TRAIN, f"output.dir={_prefix}own", "--dry-run", **{"own/thesis.txt": "x"}
    )
READ = {"--code", "--predictions of report"}
"""Options that name a place which is read."""


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_what_is_there_stays(case: Case, checked: Callable[[Case], object]) -> None:
    checked(case)


def test_every_option_that_names_an_output_resolves_it() -> None:
    found = {name: option.parser for name, option in _path_options()}
    assert {name for name, parser in found.items() if parser is not output_path} == READ
    assert len(found) > len(READ) + 10


def _path_options() -> Iterator[tuple[str, OptionInfo]]:
    """Options of all commands that take a path, by their name."""
    for _, command in commands():
        function = unwrap(command.callback)
        hints = get_type_hints(function, include_extras=True)
        for hint in hints.values():
            if get_origin(hint) is not Annotated:
                continue
            kind, info, *_ = get_args(hint)
            if isinstance(info, OptionInfo) and Path in {kind, *get_args(kind), *_inner(kind)}:
                name, of = f"{(info.param_decls or [info.default])[0]}", function.__name__
                yield (name if name in READ else f"{name} of {of}"), info


def _inner(kind: object) -> set[object]:
    return {part for argument in get_args(kind) for part in get_args(argument)}


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pages and pictures of this tool, and what could be taken for them."""
    folder = tmp_path_factory.mktemp("own")
    write_report(folder / "run")
    figure = new_figure(1, 1)
    save_figure(figure, folder / "own.png")
    figure.savefig(folder / "other.png")
    assert run(["report", str(folder / "run"), "-o", str(folder / "own.html")]) == 0
    (folder / "other.html").write_text("<p>sora report</p>")
    return folder


@pytest.mark.parametrize("words", [["compare", "--plot"], ["report", "-o"]])
def test_pages_and_pictures_of_this_tool_are_drawn_again(
    own: Path, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suffix = "png" if words[-1] == "--plot" else "html"
    for name, code in {"own": 0, "other": 2}.items():
        file = shutil.copy(own / f"{name}.{suffix}", tmp_path)
        before = Path(file).read_bytes()
        assert run([words[0], str(own / "run"), words[1], str(file)]) == code
        assert str(file) in capsys.readouterr().err
        assert code == 0 or Path(file).read_bytes() == before
    assert run([words[0], str(own / "run"), words[1], str(file), "--force"]) == 0
    assert run([words[0], str(own / "run"), words[1], str(file)]) == 0, "it is its own now"
