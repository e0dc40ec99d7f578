"""The app from outside: help, the error boundary, and what is not imported."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import SafetensorError

import sora_cli
from methods.errors import MethodError
from methods.keep import RULES
from sora_cli import app
from sora_cli.app import _split_options, run
from sora_cli.core import boundary
from sora_cli.core.checks import option
from sora_cli.core.errors import SoraError
from sora_cli.core.verbosity import Verbosity
from tests.helpers_errors import refused

ROOT = Path(sora_cli.__file__).resolve().parent.parent
COMMANDS = [
    "init",
    "train",
    "eval",
    "predict",
    "inspect",
    "prune",
    "merge",
    "extract",
    "combine",
    "recipes",
    "schema",
    "methods",
]


def sora(*arguments, cwd=None, code=None):
    command = [sys.executable, "-c", code] if code else [sys.executable, "-m", "sora_cli"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [*command, *arguments], capture_output=True, text=True, cwd=cwd, env=environment
    )


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SORA_DEBUG", raising=False)


def test_words_that_are_no_commands_name_commands():
    assert not app._INSTEAD.keys() & app.COMMANDS.keys()
    named = {name for hint in app._INSTEAD.values() for name in re.findall(r"sora (\w+)", hint)}
    assert named
    assert named <= app.COMMANDS.keys()


def test_help_lists_every_command(capsys):
    assert run(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"  {command} " in text for command in COMMANDS)
    assert run([]) == 0
    assert capsys.readouterr().out == text


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command, capsys):
    assert run([command, "--help"]) == 0
    assert f"Usage: sora {command}" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["prune", "extract"])
def test_help_names_every_rule(command):
    text = app.COMMANDS[command]
    assert [name for name in (*RULES, "max_drop", "max_differ") if option(name) not in text] == []


def test_version(capsys):
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"sora {sora_cli.__version__}\n"


def test_debug_shows_the_traceback_wherever_it_stands(capsys):
    for arguments in (["--debug", "train", "xyz"], ["train", "xyz", "--debug"]):
        assert run(arguments) == 2
        shown = capsys.readouterr().err
        assert "Traceback" in shown
        assert "error: no recipe 'xyz'" in shown


def test_quiet_and_verbose_stand_anywhere_and_exclude_each_other(capsys, monkeypatch):
    chosen = []
    monkeypatch.setattr("sora_cli.app.choose", chosen.append)
    for arguments in (["--quiet", "methods"], ["methods", "--verbose"], ["methods"]):
        assert run(arguments) == 0
    assert chosen == [Verbosity.QUIET, Verbosity.VERBOSE, Verbosity.NORMAL]
    capsys.readouterr()
    refused(capsys, "methods", "--quiet", "--verbose")
    refused(capsys, "train", "--", "--quiet")
    assert _split_options(["train", "--", "--quiet"]) == (["train", "--", "--quiet"], set())


def raising(error):
    def command(**_):
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code", "lines"),
    [
        (SoraError("what", where="f:1", hint="hint"), 2, ["error: what", "  f:1", "  hint"]),
        (SoraError("a\nb", where="c\n"), 2, ["error: a\\nb", "  c\\n"]),
        (MethodError("a\nb\nc\nd\n"), 2, ["error: a", "  b", "  c"]),
        (MethodError("no such layer"), 2, ["error: no such layer"]),
        (OSError(27, "File too large", "x"), 2, ["error: 'x' cannot be used: file too large"]),
        (
            SafetensorError("I/O error: File too large (os error 27)"),
            2,
            ["error: a file cannot be used: file too large"],
        ),
        (KeyboardInterrupt(), 130, ["interrupted"]),
    ],
)
def test_the_boundary(error, code, lines, capsys):
    assert boundary.guarded(raising(error)) == code
    assert capsys.readouterr().err.splitlines() == lines


def test_validation_errors_that_got_through_are_short(capsys):
    from methods.configs import LoraConfig

    assert boundary.guarded(lambda: LoraConfig(r=0)) == 2
    assert capsys.readouterr().err.startswith("error: r: ")


def test_a_fault_of_the_program_names_its_log(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(boundary.tempfile, "tempdir", str(tmp_path))
    assert boundary.guarded(raising(ZeroDivisionError("by\nzero"))) == 1
    shown = capsys.readouterr().err.splitlines()
    assert shown[0] == "error: internal error: ZeroDivisionError: by zero"
    assert len(shown) == 3
    log = Path(shown[1].removeprefix("  the traceback is in "))
    assert "ZeroDivisionError" in log.read_text()
    assert boundary.guarded(raising(ZeroDivisionError("by zero")), debug=True) == 1
    assert "Traceback" in capsys.readouterr().err


def test_an_interrupt_during_a_command_exits_130(monkeypatch, capsys):
    from sora_cli.commands import recipes

    monkeypatch.setattr(recipes, "list_recipes", raising(KeyboardInterrupt()))
    assert run(["recipes"]) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_a_closed_pipe_is_quiet():
    process = subprocess.Popen(
        [sys.executable, "-m", "sora_cli", "schema"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        preexec_fn=lambda: signal.signal(signal.SIGPIPE, signal.SIG_IGN),
    )
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 0


def test_a_good_recipe_is_read_without_torch(tmp_path):
    code = (
        "import sys; from sora_cli.recipe.load import load_recipe\n"
        "load_recipe('official/mnli', ['method.name=adalora']).resolved()\n"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    )
    assert sora(cwd=tmp_path, code=code).returncode == 0


def test_code_reaches_schema_and_methods(tmp_path, capsys, monkeypatch):
    from methods import registry

    monkeypatch.setattr(registry, "_REGISTERED", {})
    (tmp_path / "mine.py").write_text(
        'from methods.lora import Lora\n\n\nclass Mine(Lora):\n    name = "mine"\n'
    )
    assert run(["methods", "--json", "--code", "mine.py"]) == 0
    assert [m["name"] for m in json.loads(capsys.readouterr().out)][-1] == "mine"
    assert run(["schema", "--code", "mine.py"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert "mine" in schema["$defs"]["MethodBlock"]["properties"]["name"]["enum"]
