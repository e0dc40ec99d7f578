"""The rehearsal device, or a real accelerator if there is one, for the length of a test.

Torch cannot forget a device, so these tests have a process of their own: `make gpu TINY=1` starts
it. A run of pytest that does not name this folder leaves it out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.rehearsal import fake
from tests.rehearsal.watch import Watch, watching


def _named(config: pytest.Config) -> bool:
    return any("rehearsal" in Path(word.partition("::")[0]).parts for word in config.args)


def pytest_ignore_collect(config: pytest.Config) -> bool | None:
    """Leave the folder out where it is not named."""
    return None if _named(config) else True


def pytest_collection_finish(session: pytest.Session) -> None:
    """Make the device known before the first test."""
    if not fake.REAL and _named(session.config):
        if (why := fake.lacks()) is not None:
            pytest.exit(why, returncode=pytest.ExitCode.INTERNAL_ERROR)
        fake.register()


@pytest.fixture
def watch(
    monkeypatch: pytest.MonkeyPatch, record_property: Callable[[str, Any], None]
) -> Iterator[Watch]:
    """Let everything compute on the device; the watch knows the waits in steps."""
    with watching(monkeypatch) as watch:
        yield watch
    record_property("waits", watch.waits)
