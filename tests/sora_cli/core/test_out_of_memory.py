"""Which errors mean that memory ran out, and what is said of them."""

from __future__ import annotations

import pytest
import torch

from sora_cli.core.boundary import guarded
from sora_cli.core.errors import SoraError
from sora_cli.core.out_of_memory import describe, ran_out, telling

CUDA = torch.OutOfMemoryError(
    "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.11 GiB"
)
CPU = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 400 bytes.")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (CUDA, "out of memory (for a tensor of 20.00 MiB)"),
        (CPU, "out of memory (for a tensor of 400 bytes)"),
        (MemoryError(), "out of memory"),
    ],
)
def test_memory_that_ran_out(
    error: Exception, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ran_out(error)
    assert describe(error) == words
    with (
        pytest.raises(SoraError, match="step 3: out of memory") as caught,
        telling(lambda: "step 3", hint="less"),
    ):
        raise error
    assert caught.value.lines()[1:] == ["less"]

    def fail() -> None:
        raise error

    assert guarded(fail) == 2
    assert capsys.readouterr().err.splitlines()[0] == f"error: {words}"


def test_another_error_stays_as_it_is() -> None:
    with pytest.raises(RuntimeError, match="size mismatch"), telling(lambda: "step 3", hint=""):
        raise RuntimeError("size mismatch")
