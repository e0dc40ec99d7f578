"""Words on the command line that are wrong, outputs that are in the way; and real processes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sora_cli.app import run
from sora_cli.report import FILE_NAME, RunReport
from tests.sora_cli.bad_input.runner import TRAIN, Case, bad, check_process, lay_out, recipe

FINISHED = RunReport(name="r", recipe={}, status="completed").model_dump_json()
PATH = recipe().replace(
    "output:",
    "path:\n  vary: method.threshold\n  schedule: {start: 0, stop: 1, num: 2}\noutput:",
)
SWEEP = "recipe: r.yaml\ngrid: {training.seed: [0, 1]}\n"
WORDS: dict[str, Case] = {
    "no such command": bad("No such command 'trian'", "trian", then="--help"),
    "no such option": bad("No such option: --foce", *TRAIN, "--foce",
        then="try: sora train --help"),
    "no recipe": bad("Missing argument", "train", then="try: sora train --help"),
    "no output": bad("Missing option '--output'", "prune", "models/adapter",
        then="try: sora prune --help"),
    "no override": bad("'epochs' is no override", *TRAIN, "epochs", then="block.key=value"),
    "an override without a key": bad("'=3' is no override", *TRAIN, "=3", then="block.key=value"),
    "an override with an empty key": bad("'training..epochs=3' is no override", *TRAIN,
        "training..epochs=3", then="block.key=value"),
    "an override of no block": bad("unknown block 'trainning'", *TRAIN, "trainning.epochs=3",
        then="command line: trainning.epochs=3"),
    "an override of no key": bad("unknown key 'epochz'", *TRAIN, "training.epochz=3",
        then="did you mean 'epochs'?"),
    "an override into a value": bad("training.epochs must be a number", *TRAIN,
        "training.epochs.x=3", then="command line: training.epochs.x=3"),
    "an override of broken YAML": bad("not valid YAML", *TRAIN, "data.validation=[a",
        then="command line: data.validation=[a"),
    "an override with a tag": bad("data.validation=!!python/name:os.system", *TRAIN,
        "data.validation=!!python/name:os.system"),
    "an override with a tag in a list": bad("the YAML tag !!python/name:os.system is not allowed",
        *TRAIN, "data.validation=[!!python/name:os.system ]",
        then="command line: data.validation="),
    "an override that extends": bad("extends belongs in a file", *TRAIN, "extends=b.yaml",
        then="command line: extends=b.yaml"),
    "a block as a value": bad("training must be a block of keys", *TRAIN, "training=3",
        then="command line: training=3"),
    "a value of another type": bad("training.epochs must be a number", *TRAIN,
        "training.epochs=many", then="command line: training.epochs=many"),
    "a directory that is none": bad("no data directory './x'", *TRAIN, "data.files=null",
        "data.path=./x", then="command line: data.path=./x"),
    "two rules": bad("exclude each other", "prune", "models/adapter", "-o", "new", "--rank", "1",
        "--energy", "0.5", then="give one of them"),
    "a rank of none": bad("--rank must be at least 1", "prune", "models/adapter", "-o", "new",
        "--rank", "0"),
    "a rank of words": bad("Invalid value for '--rank'", "prune", "models/adapter", "-o", "new",
        "--rank", "x", then="try: sora prune --help"),
    "a share above all": bad("--energy is a share above 0 and up to 1", "prune", "models/adapter",
        "-o", "new", "--energy", "2"),
    "a share that is no number": bad("--energy is a share above 0 and up to 1", "prune",
        "models/adapter", "-o", "new", "--energy", "nan"),
    "a drop without a recipe": bad("--max-drop needs a recipe", "prune", "models/adapter", "-o",
        "new", "--max-drop", "0.01", then="add --recipe R"),
    "a recipe without a drop": bad("--recipe goes with --max-drop and --heal only", "prune",
        "models/adapter", "-o", "new", "-r", "r.yaml", then="--max-drop 0.01"),
    "no such layout": bad("no layout 'exakt'", "export", "models/adapter", "-o", "new", "--layout",
        "exakt", then="one of exact, padded"),
    "no such dtype": bad("no dtype 'int8'", "export", "models/adapter", "-o", "new", "--dtype",
        "int8", then="one of float32"),
    "a tolerance below zero": bad("must be 0 or more, not -1",
        "verify", "models/adapter", "--tolerance",
        "-1"),
    "nothing to verify": bad("there is no directory models/adaptr", "verify", "models/adaptr",
        then="sora verify models/adapter"),
    "nothing to score": bad("'no-such-model' is neither a local directory nor", "eval",
        "no-such-model", "-r", "r.yaml", then="sora eval DIR --recipe r.yaml"),
    "no path to pick from": bad("nowhere", "pick", "nowhere", "--keep", "0.9"),
    "nothing to report on": bad("there is no directory nowhere", "report", "nowhere"),
    "a report of an adapter": bad("models/adapter is no run's directory", "report",
        "models/adapter", then="sora inspect models/adapter"),
    "no examples at all": bad("Invalid value for '--examples'", "report", "out", "--examples", "0",
        then="try: sora report --help"),
    "a damaged report": bad("out/report.json is no run's report", "report", "out",
        **{"out/report.json": "{"}),
    "predictions that are none": bad("p.jsonl is not JSON, line by line", "report", "out",
        "--predictions", "p.jsonl", then="sora eval RUN", **{f"out/{FILE_NAME}": FINISHED,
        "p.jsonl": "{"}),
    "no such code": bad("no file 'x.py' (--code)", *TRAIN, "--code", "x.py"),
    "code that is none": bad("is no Python file (--code)", *TRAIN, "--code", "r.yaml",
        then="must end in .py"),
    "code that fails": bad("'x.py' fails on import: ZeroDivisionError", *TRAIN, "--code", "x.py",
        at=("x.py", "1 / 0"), **{"x.py": "\n1 / 0\n"}),
    "code without a method": bad("'x.py' defines no adapter method", *TRAIN, "--code", "x.py",
        then="AdapterMethod", **{"x.py": "x = 1\n"}),
    "no such packaged recipe": bad("no recipe 'rtee'", "recipes", "show", "rtee",
        then="did you mean 'rte'?"),
}  # fmt: skip
OUTPUTS: dict[str, Case] = {
    "a finished run": bad("'out' holds a finished run", then="--force",
        **{f"out/{FILE_NAME}": FINISHED}),
    "somebody else's files": bad("'out' is not empty and holds no run", then="output.dir=DIR",
        **{"out/thesis.txt": "x"}),
    "a file in its place": bad("'out.txt'", *TRAIN, "output.dir=out.txt", **{"out.txt": "x"}),
    "a file above": bad("out.txt", *TRAIN, "output.dir=out.txt/run", **{"out.txt": "x"}),
    "a path in a run's place": bad("'out' is not empty and holds no path", "path", "r.yaml",
        then="output.dir=DIR", r=PATH, **{"out/thesis.txt": "x"}),
    "pruned over something": bad("new exists already", "prune", "models/adapter", "-o", "new",
        then="--force", **{"new/x.txt": "x"}),
    "pruned over something by force": bad("new is not replaced, even with --force", "prune",
        "models/adapter", "-o", "new", "--force", then="choose another place",
        **{"new/x.txt": "x"}),
    "exported to below a file": bad("r.yaml/new", "export", "models/adapter", "-o", "r.yaml/new",
        "--no-verify"),
    "merged into its own base": bad("models/base is what is read here", "merge", "models/adapter",
        "-o", "models/base", "--force", then="another place"),
    "pruned into itself": bad("models/adapter is what is read", "prune", "models/adapter",
        "-o", "models/x/../adapter", "--force", then="another place"),
    "exported into its own directory": bad("models/adapter/new lies in what is read",
        "export", "models/adapter", "-o", "models/adapter/new"),
    "merged around its adapter": bad("models holds what is read", "merge", "models/adapter", "-o",
        "models", "--force"),
    "pruned into its base": bad("lies in what is read", "prune", "models/adapter", "-o",
        "models/base/new"),
    "trained into its model": bad("models/base is what is read", *TRAIN, "--force",
        "output.dir=models/base", then="output.dir=DIR"),
    "a path below its model": bad("models/base/new lies in what is read", "path", "r.yaml",
        "output.dir=models/base/new", then="output.dir=DIR", r=PATH),
    "a sweep around its model": bad("models holds what is read", "sweep", "s.yaml",
        "output.dir=models", then="output.dir=DIR", **{"s.yaml": SWEEP}),
    "a record of another tool": bad("'out/sweep.json' is not of a sweep", "sweep", "s.yaml",
        "output.dir=out", then="output.dir=DIR", **{"s.yaml": SWEEP, "out/sweep.json": "[]"}),
    "predictions over data": bad("train.jsonl is what is read", "eval", "models/adapter", "-r",
        "r.yaml", "--predictions", "train.jsonl", "--force"),
    "predictions over a recipe": bad("r.yaml is what is read", "eval", "models/adapter", "-r",
        "r.yaml", "--predictions", "r.yaml", "--force"),
    "predictions over a report": bad("models/report.json is what is read", "eval",
        "models/adapter", "-r", "r.yaml", "--force", "--predictions", "models/report.json",
        **{"models/report.json": FINISHED}),
    "predictions over a history": bad("models/history.json is what is read", "eval",
        "models/adapter", "-r", "r.yaml", "--force", "--predictions", "models/history.json",
        **{"models/report.json": FINISHED, "models/history.json": "[]"}),
    "predictions among data": bad("rows/p.jsonl lies in what is read", "eval", "models/adapter",
        "-r", "r.yaml", "data.files=null", "data.path=rows", "--predictions", "rows/p.jsonl",
        **{"rows/train.csv": "text,label\na,0\n"}),
    "a picture over an adapter": bad("lies in what is read", "inspect", "models/adapter", "--plot",
        "models/adapter/ranks.png"),
    "a result with foreign files": bad("out/adapter is not replaced", *TRAIN, "--force",
        then="output.dir=DIR", **{f"out/{FILE_NAME}": FINISHED, "out/checkpoints/x.txt": "x",
        "out/adapter/sora.json": "{}", "out/adapter/thesis.txt": "x"}),
    "a result of nobody": bad("'out/adapter' is not of a run", *TRAIN, "--force",
        then="output.dir=DIR", **{"out/adapter/thesis.txt": "x"}),
    "a checkpoint that is none": bad("'out/checkpoints/step-000001' is not of a run", *TRAIN,
        "--force", then="output.dir=DIR", **{f"out/{FILE_NAME}": FINISHED,
        "out/checkpoints/step-000001/x.txt": "x"}),
    "a report of another tool": bad("'out' is not empty and holds no run", *TRAIN,
        then="output.dir=DIR", **{f"out/{FILE_NAME}": "[]"}),
    "a stage that is none": bad("'out/stages/01/adapter' is not of a run", "path", "r.yaml",
        then="output.dir=DIR", r=PATH, **{"out/stages/01/adapter/thesis.txt": "x"}),
    "pruned over more than an adapter": bad("it also holds 'README.md'", "prune", "models/adapter",
        "-o", "new", "--force", then="move that away",
        **{"new/adapter_config.json": "{}", "new/README.md": "x"}),
    "merged over more than a model": bad("it also holds 'package.json'", "merge", "models/adapter",
        "-o", "new", "--force", then="move that away",
        **{"new/config.json": "{}", "new/package.json": "{}"}),
    "merged to below a file": bad("r.yaml/new", "merge", "models/adapter", "-o", "r.yaml/new",
        "--no-verify"),
    "merged over something": bad("new exists already", "merge", "models/adapter", "-o", "new",
        then="--force", **{"new/x.txt": "x"}),
    "predictions below a file": bad("--predictions r.yaml/p.jsonl: r.yaml is a file", "eval",
        "models/adapter", "-r", "r.yaml", "--predictions", "r.yaml/p.jsonl"),
    "a page over a thesis": bad("out/report.html exists already", "report",
        "out", then="--force", **{f"out/{FILE_NAME}": FINISHED, "out/report.html": "x"}),
    "a page over its report": bad("out/report.json is what is read", "report", "out", "-o",
        "out/report.json", "--force", **{f"out/{FILE_NAME}": FINISHED}),
    "a page below a file": bad("--output r.yaml/page.html: r.yaml is a file", "report", "out", "-o",
        "r.yaml/page.html", **{f"out/{FILE_NAME}": FINISHED}),
    "recipes copied to below a file": bad("r.yaml/copies", "recipes", "copy", "rte", "--to",
        "r.yaml/copies"),
}  # fmt: skip
CASES = {
    f"{kind}-{name}": case
    for kind, table in [("word", WORDS), ("output", OUTPUTS)]
    for name, case in table.items()
}
PROCESSES = {
    "typo": bad("unknown key 'epochz'", r=recipe("training", "epochz: 3"), then="did you mean"),
    "tag": bad("is not allowed",
        r=recipe("output", "dir: !!python/object/apply:os.system ['touch x']")),
    "rows": bad("no JSON", at=("train.jsonl", "BROKEN"),
        **{"train.jsonl": '{"sentence1": "BROKEN"\n'}),
    "labels": bad("label 7 in column 'label' is none of the 2 classes",
        **{"validation.jsonl": '{"sentence1": "a", "sentence2": "b", "label": 7}\n'}),
    "model": bad("there is no model at ./d", *TRAIN, "model.path=./d"),
    "merge": bad("there is no directory nowhere", "merge", "nowhere", "-o", "new"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_bad_words(case: Case, checked: Callable[[Case], object]) -> None:
    checked(case)


@pytest.mark.parametrize("case", PROCESSES.values(), ids=PROCESSES)
def test_in_a_process(case: Case, tmp_path: Path, models: Path) -> None:
    check_process(case, tmp_path, models)


def test_debug_shows_where_a_mistake_was_noticed(
    tmp_path: Path,
    models: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    lay_out(bad("", r=recipe("training", "epochz: 3")), tmp_path, models)
    monkeypatch.chdir(tmp_path)
    assert run(["--debug", *TRAIN]) == 2
    shown = capsys.readouterr().err
    assert "Traceback (most recent call last)" in shown
    assert "error: unknown key 'epochz'" in shown


def test_a_fault_of_the_program_is_called_one(
    tmp_path: Path,
    models: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Deep inside, something unforeseen: told as such, with the traceback in a file."""

    def fault(*_: object, **__: object) -> None:
        raise ZeroDivisionError("of all things")

    lay_out(bad(""), tmp_path, models)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr("sora_cli.tasks.sequence.tokenise", fault)
    assert run(TRAIN) == 1
    shown = capsys.readouterr().err
    error = shown[shown.index("error: ") :].splitlines()
    assert error[0] == "error: internal error: ZeroDivisionError: of all things"
    assert "Traceback" not in shown
    log = Path(error[1].split()[-1])
    assert log.parent == tmp_path
    text = log.read_text(encoding="utf-8")
    assert "Traceback (most recent call last)" in text
    assert "in fault" in text
    assert "report it" in error[2]
