"""The plug-in of the arena: nested training keeps the contract, and its diagonal is the sum's."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import pytest
import torch

from methods import registry
from methods.contract import CHECKS as IN_A_LOOP
from methods.contract import Check
from methods.contract.net import start
from sora_cli.recipe.library import recipes_dir
from sora_cli.recipe.plugins import load_code
from sora_cli.verify.contract import (
    a_checkpoint_resumes_bit_equal,
    a_saved_adapter_loads_equal,
    hooks_run_once_per_optimiser_step,
)

IN_A_TRAINER = (
    hooks_run_once_per_optimiser_step,
    a_checkpoint_resumes_bit_equal,
    a_saved_adapter_loads_equal,
)


@pytest.fixture(scope="module")
def code() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_REGISTERED", {})
        yield load_code(recipes_dir() / "sweeps" / "arena" / "nested.py")


@pytest.mark.parametrize("check", [*IN_A_LOOP, *IN_A_TRAINER], ids=lambda check: check.__name__)
def test_contract(code: ModuleType, check: Check) -> None:
    check(lambda **options: code.Nested(code.NestedConfig(**options)))


@pytest.mark.parametrize(
    ("rank_scale", "scales"),
    [("none", (1, 1, 1)), ("rank", (1, 1 / 3, 1 / 6)), ("sqrt", (1, 3**-0.5, 6**-0.5))],
)
def test_the_update_is_the_sum_of_the_nested_ones(
    code: ModuleType, rank_scale: str, scales: tuple[float, ...]
) -> None:
    config = code.NestedConfig(r_max=6, ranks=[1, 3, 6], rank_scale=rank_scale, alpha=5)
    run = start(code.Nested(config))
    run.train(range(10))
    for layer in run.layers.values():
        A, B = layer.A.detach(), layer.B.detach()
        nested = sum(s * B[:, :r] @ A[:r] for r, s in zip((1, 3, 6), scales, strict=True))
        torch.testing.assert_close(
            run.method.factors(layer).dense(), 5 / 6 * nested, rtol=1e-12, atol=1e-14
        )


def test_a_component_weighs_as_many_ranks_as_hold_it(code: ModuleType) -> None:
    layer = start(code.Nested(code.NestedConfig())).layers["0"]
    assert layer.d.tolist() == [4, 3, 2, 2, 1, 1, 1, 1]
    assert not layer.d.requires_grad


@pytest.mark.parametrize("ranks", [[1, 2, 4], [8, 4], [4, 4, 8], [4, 8, 16]])
def test_ranks_rise_to_r_max(code: ModuleType, ranks: list[int]) -> None:
    with pytest.raises(ValueError, match="must rise, and end with r_max 8"):
        code.NestedConfig(ranks=ranks)
