"""Removing dead components: what is left trains as if they were still there."""

from __future__ import annotations

import pytest
import torch

from methods.base import AdapterMethod
from methods.compaction import DeadSteps, remove_components
from methods.configs import SoraConfig
from methods.contract.net import regression_data
from methods.errors import MethodError
from methods.registry import create
from methods.sora import Sora
from tests.methods.support import Run, start

STEPS = 60


def sora_run() -> Run:
    """SoRA whose gates die and, the learning rate being small, do not come back."""
    method = create("sora", r_max=8, threshold=0.03, gate_lr=1e-3)
    return start(method, total_steps=STEPS, seed=3)


def compact(run: Run, gone: torch.Tensor) -> dict[str, torch.Tensor]:
    run.optimizer.zero_grad()
    keep = remove_components(run.layers, gone, run.optimizer.state)
    run.method.removed(keep)
    return keep


def dead(run: Run) -> torch.Tensor:
    return ~DeadSteps(run.layers).alive()


def test_the_rest_trains_on_as_before() -> None:
    whole, cut = sora_run(), sora_run()
    whole.train(range(30))
    cut.train(range(30))
    gone = dead(cut)
    keep = compact(cut, gone)
    assert 0 < gone.sum() < gone.numel()
    losses = whole.train(range(30, STEPS))
    assert cut.train(range(30, STEPS)) == pytest.approx(losses, rel=1e-9)
    x, _ = regression_data()
    torch.testing.assert_close(cut.net(x), whole.net(x), rtol=0, atol=1e-9)
    for path, layer in whole.layers.items():
        left = cut.layers[path]
        assert left.rank == int(keep[path].sum())
        torch.testing.assert_close(left.A.data, layer.A.data[keep[path]], rtol=0, atol=1e-9)
        torch.testing.assert_close(left.B.data, layer.B.data[:, keep[path]], rtol=0, atol=1e-9)
    assert cut.method.details(cut.layers) == whole.method.details(whole.layers)
    assert cut.method.summary(cut.layers).live == whole.method.summary(whole.layers).live


def test_moments_go_with_their_components() -> None:
    run = sora_run()
    run.train(range(30))
    before = {p: dict(state) for p, state in run.optimizer.state.items()}
    parameters = {id(p) for group in run.optimizer.param_groups for p in group["params"]}
    keep = compact(run, dead(run))
    for path, layer in run.layers.items():
        for kind, p in layer.named_factors():
            assert id(p) in parameters
            for name in ("exp_avg", "exp_avg_sq"):
                old, new = before[p][name], run.optimizer.state[p][name]
                cut = old[:, keep[path]] if kind == "B" else old[keep[path]]
                assert torch.equal(new, cut)
            assert torch.equal(run.optimizer.state[p]["step"], before[p]["step"])


def test_a_layer_may_lose_everything() -> None:
    run = sora_run()
    run.train(range(3))
    for layer in run.layers.values():
        layer.d.data.zero_()
    compact(run, dead(run))
    assert [layer.rank for layer in run.layers.values()] == [0, 0]
    run.train(range(3, 6))
    assert run.method.summary(run.layers).total == 0


def test_a_state_after_removals_is_taken_back() -> None:
    run = sora_run()
    run.train(range(30))
    compact(run, dead(run))
    run.train(range(30, 40))
    other = create("sora", r_max=8, threshold=0.03)
    other.load_state_dict(run.method.state_dict())
    assert other.details(run.layers) == run.method.details(run.layers)


def test_adalora_goes_on_with_its_budget() -> None:
    run = start(create("adalora", init_r=6, target_r=2, t_init=5, t_final=20), total_steps=STEPS)
    run.train(range(45))
    removed = int(dead(run).sum())
    assert removed
    keep = compact(run, dead(run))
    for name, average in run.method.state_dict().items():
        if name.startswith("importance."):
            path, _, kind = name.removeprefix("importance.").rpartition(".")
            assert average.shape == getattr(run.layers[path], kind).shape
    run.train(range(45, STEPS))
    assert sum(int(k.sum()) for k in keep.values()) == 12 - removed
    assert run.method.summary(run.layers).live == 4
    assert "met" in run.method.summary(run.layers).events[0]


def test_spells() -> None:
    run = sora_run()
    spells = DeadSteps(run.layers)
    first = run.layers["0"].d.data
    first[:3] = 0
    for step in range(4):
        first[2] = float(step == 2)  # dead, dead, alive, dead
        spells.step()
    assert spells.at_least(4).nonzero().flatten().tolist() == [0, 1]
    assert spells.at_least(1).nonzero().flatten().tolist() == [0, 1, 2]
    gone = spells.at_least(4)
    remove_components(run.layers, gone, run.optimizer.state)
    spells.drop(gone)
    assert spells.at_least(1).nonzero().flatten().tolist() == [0]
    spells.step()
    assert spells.at_least(2).nonzero().flatten().tolist() == [0]


def test_without_gates_a_component_is_dead_if_both_its_factors_are() -> None:
    run = start(create("lora", r=4))
    assert DeadSteps(run.layers).alive().all()  # B is zero at first, and A is not
    run.train(range(3))
    first = run.layers["0"]
    first.A.data[1:3] = 0
    first.B.data[:, 2:] = 0
    assert DeadSteps(run.layers).alive().tolist() == [True, True, False, True] + [True] * 4


@pytest.mark.parametrize("budget", [{"target_r": 0.5}, {"max_params": 40}], ids=str)
def test_what_a_cut_leaves_trains_as_if_the_rest_were_there(budget: dict[str, float]) -> None:
    options = {"r_max": 8, "cut_at": 20, **budget}
    whole, cut = (start(create("cut", **options), total_steps=STEPS) for _ in range(2))
    losses = whole.train(range(STEPS))
    assert cut.train(range(25)) == losses[:25]
    gone = dead(cut)
    compact(cut, gone)
    assert 0 < gone.sum() < 16
    assert sum(layer.rank for layer in cut.layers.values()) == 16 - int(gone.sum())
    assert cut.train(range(25, STEPS)) == pytest.approx(losses[25:], rel=1e-9)
    one, other = (run.method.details(run.layers)["cut"] for run in (cut, whole))
    assert one == pytest.approx(other, rel=1e-6)
    assert cut.method.summary(cut.layers).live == whole.method.summary(whole.layers).live
    for path, layer in whole.layers.items():
        update, expected = (run.method.factors(run.layers[path]).dense() for run in (cut, whole))
        torch.testing.assert_close(update, expected, rtol=0, atol=1e-9)
        assert layer.rank == 8
    left = sum(layer.rank for layer in cut.layers.values())
    assert left == cut.method.summary(cut.layers).live == one["components"]


def test_a_method_with_a_state_of_its_own_must_cut_it_down() -> None:
    """A plug-in that does not know of removals gets an error."""

    class Keeps(Sora):
        removed = AdapterMethod.removed

    run = start(Keeps(SoraConfig()))
    run.train(range(2))
    with pytest.raises(MethodError, match="cannot continue"):
        run.method.removed({})
    create("lora").removed({})  # no state: nothing to do
