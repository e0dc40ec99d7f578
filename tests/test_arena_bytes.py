"""The plug-ins of the arena in bytes: rounding while a cut heals, and Uni-LoRA against PEFT's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from methods import registry
from methods.contract import CHECKS as IN_A_LOOP
from methods.contract import Check
from methods.contract.net import STEPS, regression_data, small_net, start
from methods.errors import MethodError
from methods.grid import nearest, recognised
from sora_cli.recipe.library import recipes_dir
from sora_cli.recipe.plugins import load_code
from tests.present import present
from tests.test_arena_nested import IN_A_TRAINER

CUT = 16
"""Steps of the contract's runs before the cut."""


@pytest.fixture(scope="module")
def code() -> Iterator[dict[str, Any]]:
    """The names of both plug-ins."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_REGISTERED", {})
        folder = recipes_dir() / "sweeps" / "arena"
        yield {
            k: v
            for n in ("rounded", "unilora")
            for k, v in vars(load_code(folder / f"{n}.py")).items()
        }


def rounded(code: dict[str, Any], **options: Any) -> Any:
    return code["Rounded"](code["RoundedConfig"](**options))


def unilora(code: dict[str, Any], **options: Any) -> Any:
    return code["UniLora"](code["UniLoraConfig"](**{"d": 50, **options}))


@pytest.mark.parametrize("make", [rounded, unilora])
@pytest.mark.parametrize("check", [*IN_A_LOOP, *IN_A_TRAINER], ids=lambda check: check.__name__)
def test_contract(code: dict[str, Any], make: Any, check: Check) -> None:
    check(lambda **options: make(code, **options))


def unrounded(run: Any) -> dict[str, Tensor]:
    """The factors before rounding, from the layers and the method's state; dead ones left out."""
    rest = {n: t for n, t in run.method.state_dict().items() if n.startswith("rest of ")}
    sums = {}
    for name, tensor in rest.items():
        path, kind = name.removeprefix("rest of ").rsplit(".", 1)
        p = getattr(run.layers[path], kind).detach()
        sums[f"{path}.{kind}"] = (p if kind == "A" else p.T)[: len(tensor)] + tensor
    return sums


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gradients_go_straight_through(code: dict[str, Any], bits: int) -> None:
    run = start(rounded(code, bits=bits, target_r=3))
    for group in run.optimizer.param_groups:
        group["weight_decay"] = 0.0  # it acts on the rounded factors
    run.train(range(CUT))
    exact = {name: t.requires_grad_() for name, t in unrounded(run).items()}
    adamw = torch.optim.AdamW(list(exact.values()), lr=1e-2, weight_decay=0.0)
    for name, p in exact.items():  # the moments of the live components
        path, kind = name.rsplit(".", 1)
        old = run.optimizer.state[getattr(run.layers[path], kind)]
        adamw.state[p] = {
            k: v.clone() if k == "step" else (v if kind == "A" else v.T)[: len(p)].clone()
            for k, v in old.items()
        }
    x, y = regression_data()
    net = small_net()
    for _ in range(CUT, STEPS):
        through = {
            n: p + (nearest(p, bits).values().double() - p).detach() for n, p in exact.items()
        }
        h = x
        for path in ("0", "2"):
            update = 2 * through[f"{path}.B"].T @ through[f"{path}.A"]
            h = net[int(path)](h) + h @ update.T
            h = torch.tanh(h) if path == "0" else h
        mse_loss(h, y).backward()  # type: ignore[no-untyped-call]
        adamw.step()
        adamw.zero_grad()
    run.train(range(CUT, STEPS))
    for name, t in unrounded(run).items():
        torch.testing.assert_close(t, exact[name].detach(), rtol=1e-9, atol=1e-11)
        assert not torch.equal(t, nearest(t, bits).values().double())


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_result_is_on_the_grid_and_the_start_is_not(code: dict[str, Any], bits: int) -> None:
    run = start(rounded(code, bits=bits), dtype=torch.float32)
    run.train(range(CUT - 1))
    assert recognised(run.layers["0"].A.detach()) is None
    for step in range(CUT - 1, STEPS):
        run.train([step])
        for layer in run.layers.values():
            stored = run.method.factors(layer).drop_zeros()
            for matrix in (stored.A, stored.B.T):
                on_grid = present(recognised(matrix))
                assert on_grid.bits <= bits
                assert torch.equal(on_grid.values(), matrix)


def test_until_the_cut_it_is_lora(code: dict[str, Any]) -> None:
    ours = start(rounded(code))
    plain = start(registry.method_class("lora")(registry.config_class("lora")()))
    assert ours.train(range(CUT)) == plain.train(range(CUT))


def test_a_later_stage_begins_without_a_rest(code: dict[str, Any]) -> None:
    run = start(rounded(code, target_r=4))
    run.train(range(STEPS))
    run.method.set_option("target_r", 1.0)
    run.method.begin(run.layers, total_steps=STEPS)
    assert unrounded(run) == {}
    run.train(range(STEPS))
    assert {len(t) for t in unrounded(run).values()} <= {1, 2}


@pytest.mark.parametrize("options", [{"alpha": 12}, {"r_max": 6}])
def test_a_scaling_that_leaves_the_grid_is_refused(
    code: dict[str, Any], options: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match="must be a power of two"):
        rounded(code, **options)


def test_unilora_trains_as_pefts_own(code: dict[str, Any]) -> None:
    peft = pytest.importorskip("peft")
    if not hasattr(peft, "UniLoraConfig"):
        pytest.skip("this PEFT has no Uni-LoRA")
    run = start(unilora(code, proj_seed=7), dtype=torch.float32)
    run.train([0])  # trains nothing
    config = peft.UniLoraConfig(r=4, theta_d_length=50, proj_seed=7, target_modules=["0", "2"])
    theirs = peft.get_peft_model(small_net(torch.float32), config)
    theta = theirs.base_model.unilora_theta_d["default"]
    theta.data.copy_(run.method.state_dict()["theta"])
    adamw = torch.optim.AdamW([theta], lr=1e-2, weight_decay=0.01)
    x, y = regression_data(torch.float32)
    torch.testing.assert_close(run.net(x), theirs(x), rtol=1e-6, atol=1e-6)
    for step in range(1, STEPS):
        run.train([step])
        mse_loss(theirs(x), y).backward()  # type: ignore[no-untyped-call]
        adamw.step()
        adamw.zero_grad()
    torch.testing.assert_close(run.method.state_dict()["theta"], theta.data, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(run.net(x), theirs(x), rtol=1e-4, atol=1e-5)


def test_unilora_says_what_is_trained(code: dict[str, Any]) -> None:
    run = start(unilora(code))
    assert run.method.details(run.layers) == {
        "trained_numbers": 50,
        "factor_numbers": 4 * (10 + 12 + 12 + 6),
    }
    assert run.method.summary(run.layers).events == (
        "50 numbers are trained; the 160 of A and B follow",
    )


def test_unilora_starts_from_nothing_else(code: dict[str, Any]) -> None:
    run = start(unilora(code))
    with pytest.raises(MethodError, match="cannot start from an adapter"):
        run.method.start_from(run.layers, {})
    with pytest.raises(MethodError, match="another method's run"):
        run.method.load_state_dict({})
