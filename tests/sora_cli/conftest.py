"""Runs that several files look at, trained once; nobody writes into them."""

from __future__ import annotations

import pytest

from tests.helpers_runs import Trained


@pytest.fixture(scope="session")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return Trained(tmp_path_factory.mktemp("classifier"), "classification")


@pytest.fixture(scope="session")
def regressor(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return Trained(tmp_path_factory.mktemp("regressor"), "regression")
