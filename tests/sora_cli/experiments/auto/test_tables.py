"""A promise that the base model keeps without an adapter is told to promise nothing."""

from __future__ import annotations

import pytest

from sora_cli.experiments.auto.tables import base_alone
from sora_cli.report import Parameters, RunReport
from tests.sora_cli.search.test_certificate import certificate


@pytest.mark.parametrize(
    ("alone", "head", "kept"),
    [(0.806, 0, True), (0.80, 0, False), (0.9, 0, True), (0.806, 10, False)],
)
def test_the_base_alone(alone: float, head: int, kept: bool) -> None:
    """Full rank has 0.81 on validation, and the promise is 0.005."""
    report = RunReport.model_construct(
        parameters=Parameters(head=head), without_adapters={"validation": alone}
    )
    said = base_alone(certificate(), report)
    assert (said is not None) is kept
    assert said is None or "the base model alone would keep it on validation" in said
