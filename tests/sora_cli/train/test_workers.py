"""A signal to the whole process group, in the moment in which a worker begins."""

from __future__ import annotations

import os
import signal
import time

import pytest
from torch.utils.data import DataLoader

from sora_cli.core.interruption import leave_signals_to_parent
from sora_cli.train import trainer
from sora_cli.train.trainer import worker_context


def _signalled_first(worker: int) -> None:
    """Wait for the signal before the worker's own handlers are there."""
    while Signalling.number not in signal.sigpending():
        time.sleep(0.01)
    leave_signals_to_parent(worker)


class Signalling(trainer._HeldProcess):
    """Sends the worker a signal as soon as it is there."""

    number = signal.SIGTERM

    def start(self) -> None:
        super().start()
        assert self.pid is not None
        os.kill(self.pid, self.number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_its_handlers_does_not_end_a_worker(
    monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    monkeypatch.setattr(Signalling, "number", number)
    monkeypatch.setattr(trainer._HeldContext, "Process", Signalling)
    context = worker_context(2)
    loader = DataLoader(
        list(range(8)),
        batch_size=2,
        num_workers=2,
        worker_init_fn=_signalled_first,
        multiprocessing_context=context,
    )
    assert [batch.tolist() for batch in loader] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == set()


def test_without_workers_nothing_is_started() -> None:
    assert worker_context(0) is None
