"""What is said with --quiet and --verbose, and what libraries are told."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

import pytest

from sora_cli.core import console, hub
from sora_cli.core.verbosity import Verbosity, choose, quiet, verbose


@pytest.fixture(autouse=True)
def _restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)
    yield
    choose(Verbosity.NORMAL)


def test_quiet_says_results_and_what_must_be_known(capsys: pytest.CaptureFixture[str]) -> None:
    choose(Verbosity.QUIET)
    assert (quiet(), verbose()) == (True, False)
    console.say("note: x")
    console.say("DIFFERENT: x", always=True)
    console.complain("error: x")
    console.emit("accuracy 0.5")
    assert capsys.readouterr() == ("accuracy 0.5\n", "DIFFERENT: x\nerror: x\n")
    assert os.environ["TQDM_DISABLE"] == "1"
    assert os.environ["TRANSFORMERS_VERBOSITY"] == "error"


def test_verbose_leaves_libraries_their_logs() -> None:
    log = logging.getLogger("huggingface_hub")
    log.setLevel(logging.WARNING)
    choose(Verbosity.VERBOSE)
    assert (quiet(), verbose()) == (False, True)
    assert os.environ["TRANSFORMERS_VERBOSITY"] == "info"
    hub.quiet_hub()
    assert log.level == logging.WARNING
    choose(Verbosity.NORMAL)
    hub.quiet_hub()
    assert log.level == logging.ERROR
