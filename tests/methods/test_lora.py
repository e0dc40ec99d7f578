"""LoRA: initial factors and scaling."""

from __future__ import annotations

import math

import pytest
from torch import nn

from methods.registry import create
from tests.methods.support import generator


@pytest.mark.parametrize(("use_rslora", "scaling"), [(False, 12 / 4), (True, 12 / math.sqrt(4))])
def test_scaling(use_rslora: bool, scaling: float) -> None:
    method = create("lora", r=4, alpha=12, use_rslora=use_rslora)
    assert method.wrap(nn.Linear(6, 5), generator=generator()).scaling == scaling


def test_initial_factors_are_kaiming_and_zero() -> None:
    layer = create("lora", r=50).wrap(nn.Linear(400, 30), generator=generator())
    assert layer.A.shape == (50, 400)
    assert layer.B.shape == (30, 50)
    assert layer.d is None
    assert not layer.B.any()
    bound = 1 / math.sqrt(400)  # nn.init.kaiming_uniform_(a=sqrt(5))
    assert 0.99 * bound < layer.A.abs().max() <= bound
    assert layer.A.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
