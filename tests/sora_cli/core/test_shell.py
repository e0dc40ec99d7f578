"""Names in printed commands."""

from __future__ import annotations

import shlex

import pytest

from sora_cli.core.hub import looks_local
from sora_cli.core.shell import quote


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
