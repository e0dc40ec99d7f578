"""Launchers: which process this is, and what of them is refused."""

from __future__ import annotations

import pytest

from sora_cli.core.console import complain, emit, say
from sora_cli.core.errors import SoraError
from sora_cli.core.processes import is_main, rank, world_size
from sora_cli.core.table import Table, emit_table
from sora_cli.recipe.recipe import TrainingBlock
from sora_cli.train.machine import check_machine


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, (1, 0, True)),
        ({"WORLD_SIZE": "4", "RANK": "0"}, (4, 0, True)),
        ({"WORLD_SIZE": "4", "RANK": "3"}, (4, 3, False)),
        ({"RANK": "3"}, (1, 0, True)),  # some schedulers set it without any launcher
        ({"WORLD_SIZE": "", "RANK": ""}, (1, 0, True)),
    ],
)
def test_which_process(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: tuple[int, int, bool]
) -> None:
    for name in ("WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert (world_size(), rank(), is_main()) == expected


def test_only_errors_are_told_by_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    say("talk")
    emit("data")
    emit_table(Table(None, ["a"], [[1]]))
    complain("error: x")
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == "[process 1] error: x\n"


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "DeepSpeed is not supported"),
        ({"ACCELERATE_USE_FSDP": "true"}, "FSDP1 is not supported"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}, "FSDP1 is not supported"),
    ],
)
def test_what_methods_can_not_do_is_refused(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], words: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SoraError, match=words):
        check_machine(TrainingBlock.model_validate({}))


def test_fsdp2_is_not_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    check_machine(TrainingBlock.model_validate({}))
