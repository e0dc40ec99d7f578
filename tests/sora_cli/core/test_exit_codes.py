"""The exit codes are those that shells expect of processes that end on a signal."""

from __future__ import annotations

import signal

from sora_cli.core.exit_codes import BY_SIGNAL, MEANINGS
from sora_cli.core.interruption import Interrupted


def test_codes_of_signals() -> None:
    ended = (Interrupted(signal.SIGINT).exit_code, Interrupted(signal.SIGTERM).exit_code)
    assert ended == BY_SIGNAL
    assert set(BY_SIGNAL) < MEANINGS.keys()
