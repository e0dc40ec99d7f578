"""Work on many tensors: side by side, in their order, with torch's threads given back."""

from __future__ import annotations

import os
from threading import Barrier

import pytest
import torch

from sora_cli.model.threads import by_cores, one_thread


def test_cores_work_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    both = Barrier(2, timeout=120)  # it breaks where one waits for the other to end

    def work(name: str) -> tuple[str, int]:
        both.wait()
        return name * 2, torch.get_num_threads()

    found = by_cores(iter("dcba"), work)
    assert list(found.items()) == [(name, (name * 2, 1)) for name in "dcba"]


def test_the_first_error_is_raised() -> None:
    def work(name: str) -> None:
        if name != "a":
            raise ValueError(name)

    with pytest.raises(ValueError, match="b"):
        by_cores("abcd", work)
    assert by_cores("", work) == {}


@pytest.mark.usefixtures("two_threads")
def test_threads_are_given_back() -> None:
    with one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2
    with pytest.raises(ZeroDivisionError), one_thread():
        raise ZeroDivisionError
    by_cores("ab", len)
    assert torch.get_num_threads() == 2
