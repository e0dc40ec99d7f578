"""Names in printed commands."""

from __future__ import annotations

import shlex

import pytest

from sora_cli.app import build
from sora_cli.core.hub import looks_local
from sora_cli.core.shell import VALUED, operands, quote, resuming


@pytest.mark.parametrize(
    ("name", "printed"),
    [
        ("runs/out", "runs/out"),
        ("my run", "'my run'"),
        ("--force", "./--force"),
        ("-my run", "'./-my run'"),
        ("./-x", "./-x"),
        ("-", "-"),
    ],
)
def test_a_name_is_one_word_and_no_option(name: str, printed: str) -> None:
    assert quote(name) == printed
    assert len(shlex.split(printed)) == 1


def test_no_id_on_the_hub_begins_with_a_dash() -> None:
    assert looks_local("--trust-remote-code")
    assert looks_local("-org/model")
    assert not looks_local("org/-model")


def test_operands_of_a_command_line() -> None:
    words = ["--code", "mine.py", "--code=b.py", "r.yaml", "--force", "a=b", "--preview", "2"]
    assert operands(words) == ["r.yaml", "a=b"]
    assert operands(["--force", "--", "-r.yaml", "a=b"]) == ["-r.yaml", "a=b"]
    assert operands(["--code"]) == []


def test_a_command_that_resumes_a_run() -> None:
    assert resuming(["sora", "train", "r.yaml", "--resume"]) == "sora train r.yaml --resume"
    assert resuming(["sora", "train", "--", "-r.yaml"]) == "sora train --resume -- -r.yaml"


def test_options_with_a_value_are_known() -> None:
    options = [param for name in ("train", "path") for param in build(name).params
               if param.param_type_name == "option" and not param.is_flag]  # fmt: skip
    assert {name for option in options for name in option.opts} == VALUED
