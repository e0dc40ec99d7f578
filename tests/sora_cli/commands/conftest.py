"""Promises that several files look at, made once; nobody writes into them."""

from __future__ import annotations

import pytest

from tests.sora_cli.commands.promises import Made, Makers


@pytest.fixture(scope="session")
def makers(tmp_path_factory: pytest.TempPathFactory) -> Makers:
    return Makers(tmp_path_factory.mktemp("promises"))


@pytest.fixture
def made(makers: Makers, name: str) -> Made:
    return makers.of(name)
