"""One thread a test process (pytest runs three at once), no network, nothing left in the home."""

from __future__ import annotations

import gc
import json
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

# a shell starts what it puts into the background with SIGINT ignored, and so would be all that
# tests start
signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ["HF_HUB_OFFLINE"] = "1"
if "PYTEST_XDIST_WORKER" not in os.environ:  # else the processes of the run share one
    _CACHE = tempfile.TemporaryDirectory(prefix="sora-tests-")  # removed when the process ends
    os.environ["HF_HOME"] = _CACHE.name
    os.environ["HF_DATASETS_CACHE"] = f"{_CACHE.name}/datasets"

import pytest  # noqa: E402
import torch  # noqa: E402 (reads the variables above)
from tqdm import tqdm  # noqa: E402

from tests import blank, second_opinion, warm  # noqa: E402

torch.set_num_threads(1)
pytest_plugins = ["tests.durations", "tests.golden", "tests.leftovers"]


_MANY = 100  # modules
_frozen: set[str] = set()
gc.disable()  # until all is imported: nothing of it is garbage


def pytest_collection_finish() -> None:
    """Let no collection of garbage look at what was imported: Trainer asks for one in each run."""
    gc.collect()
    gc.freeze()
    gc.enable()
    _frozen.update(sys.modules)


def pytest_runtest_setup() -> None:
    """Do so again where tests have imported much since."""
    if len(sys.modules) > len(_frozen) + _MANY:
        pytest_collection_finish()


def pytest_runtest_teardown() -> None:
    """Take away the handler of `--verbose`: its stream is closed when a test's output is read.

    Where CI is set, transformers' messages reach it, and each one is then a traceback. Bars of runs
    that ended with an error go, too, before they are collected: the next bar would stand below.
    """
    logging.getLogger().handlers.clear()
    tqdm._instances.clear()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(specs: list[Any]) -> None:
    """Fork the processes of the run from one that has imported what takes seconds."""
    for spec in specs:
        spec.python = warm.worker()


@pytest.fixture(scope="session", autouse=True)
def _forked() -> Iterator[None]:
    """Fork the processes that commands start, where a test calls the command in its own process."""
    from sora_cli.experiments.sweep import engine
    from sora_cli.verify import reload

    with pytest.MonkeyPatch.context() as patch:
        for module in (engine, reload):
            patch.setattr(module, "sys", warm.Sys())
        yield


@pytest.fixture(scope="session", autouse=True)
def _cheap_runs() -> Iterator[None]:
    """Do without what costs much and shows little."""
    with pytest.MonkeyPatch.context() as patch:
        blank.install(patch.setattr)
        yield


@pytest.fixture(scope="session", autouse=True)
def _second_opinion() -> Iterator[None]:
    """Hold each certificate that is written against the other opinion."""
    from sora_cli.search.evidence import Evidence

    written = Evidence.text

    def text(evidence: Evidence) -> str:
        document = written(evidence)
        second_opinion.check(json.loads(document))
        return document

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Evidence, "text", text)
        yield


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw the map of a run's ranks all the same."""
    monkeypatch.setattr(blank.plot, "save_figure", blank.draw)
    monkeypatch.setattr(blank.plot, "draw_rank_map", blank.lay_out)


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Torch has two threads, as on a user's machine."""
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)
