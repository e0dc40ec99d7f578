"""Checks of `methods.contract` for baselines only."""

from __future__ import annotations

import torch
from torch import Tensor

from methods.baselines import Baseline, choose
from methods.contract.net import (
    HEAD,
    LR,
    STEPS,
    MethodFactory,
    first_difference,
    generator,
    regression_data,
    small_net,
    start,
)
from methods.errors import MethodError
from methods.inject import inject

_DTYPES = (torch.float32, torch.bfloat16, torch.float64)


def choosing_changes_nothing(make: MethodFactory) -> None:
    """Check that choosing moves no parameter, draws no random number and changes no output."""
    net, (x, _) = small_net(), regression_data()
    before, random = net(x), torch.get_rng_state()
    choose(net, baseline(make), head=[HEAD])
    assert torch.equal(torch.get_rng_state(), random), "choosing drew from the global generator"
    changed = first_difference(small_net().state_dict(), net.state_dict())
    assert changed is None, f"choosing changed '{changed}'"
    assert torch.equal(net(x), before), "choosing changed the output"


def only_what_was_chosen_is_trained(make: MethodFactory) -> None:
    """Check that the loss falls in every dtype, and that other parameters stay bit-equal."""
    for dtype in _DTYPES:
        run = start(make(), dtype=dtype)
        assert isinstance(run.method, Baseline)
        chosen = set(run.method.parameters)
        head = {name for name, _ in run.net.named_parameters() if name.startswith(f"{HEAD}.")}
        assert not chosen & head, f"{sorted(chosen & head)} are the head's, but were chosen"
        trained = {name for name, p in run.net.named_parameters() if p.requires_grad}
        assert trained == chosen | head, f"trained: {sorted(trained)}, chosen: {sorted(chosen)}"
        losses = run.train(range(STEPS))
        assert losses[-1] < losses[0], f"{STEPS} steps in {dtype} did not lower the loss"
        before: dict[str, Tensor] = small_net(dtype).state_dict()
        for name, tensor in run.net.state_dict().items():
            same = torch.equal(tensor, before[name])
            assert not (same and name in chosen), f"'{name}' was chosen but did not change"
            assert same or name in trained, f"training changed '{name}', which was not chosen"


def groups_hold_every_chosen_parameter_once(make: MethodFactory) -> None:
    """Check that each chosen parameter is in one group, and group names are unique."""
    method = baseline(make)
    choose(small_net(), method, head=[HEAD])
    groups = method.param_groups({}, lr=LR, weight_decay=0.01)
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in method.parameters.values()), (
        "the groups do not hold the chosen parameters, each once"
    )
    names = [group.get("name") for group in groups]
    assert None not in names, "a group has no name"
    assert len(set(names)) == len(names), f"groups share a name: {names}"


def adapting_layers_is_refused(make: MethodFactory) -> None:
    """Check that `inject` and `wrap` raise MethodError: a baseline makes no adapters."""
    net = small_net()
    for attempt in (
        lambda: inject(net, make(), generator=generator()),
        lambda: make().wrap(net[0], generator=generator()),
    ):
        try:
            attempt()
        except MethodError:
            continue
        raise AssertionError("a method with low_rank = False adapted a layer")


def baseline(make: MethodFactory) -> Baseline:
    """Make a fresh method and check that it is a baseline."""
    method = make()
    assert isinstance(method, Baseline), (
        "low_rank is False, but it is no methods.baselines.Baseline"
    )
    return method
