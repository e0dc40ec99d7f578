"""Checks of `methods.contract` that train a whole run."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from safetensors.torch import load, save
from torch import Tensor

from methods.base import LowRankLinear, StepInfo
from methods.contract.net import (
    LR,
    STEPS,
    MethodFactory,
    Run,
    base_output,
    first_difference,
    generator,
    layer_inputs,
    small_net,
    start,
)
from methods.errors import MethodError
from methods.factors import LowRankFactors

_DTYPES = (torch.float32, torch.bfloat16, torch.float64)
_HALF = STEPS // 2


def training_learns_and_leaves_the_base_alone(make: MethodFactory) -> None:
    """Check that the loss falls in every dtype, and that the base layers stay bit-equal."""
    for dtype in _DTYPES:
        run = start(make(), dtype=dtype)
        losses = run.train(range(STEPS))
        assert losses[-1] < losses[0], f"{STEPS} steps in {dtype} did not lower the loss"
        plain = small_net(dtype).state_dict()
        for path, layer in run.layers.items():
            for name, tensor in layer.base.state_dict().items():
                same = torch.equal(tensor, plain[f"{path}.{name}"])
                assert same, f"training changed the base model's '{path}.{name}' ({dtype})"
            frozen = not any(p.requires_grad for p in layer.base.parameters())
            assert frozen, f"the base layer of '{path}' is trained"


def components_keep_their_order(make: MethodFactory) -> None:
    """Check that component i of `factors` is component i of the layer in a whole run.

    This holds for dead components, too; a method that `turns_basis` may exchange components.
    """
    run = start(make())
    ranks = {path: layer.rank for path, layer in run.layers.items()}
    stepped: dict[str, Tensor] = {}

    def before_hook() -> None:
        stepped.update({path: layer.A.detach().clone() for path, layer in run.layers.items()})

    for step in range(STEPS):
        run.train([step], before_hook=before_hook)
        for path, layer in run.layers.items():
            assert layer.rank == ranks[path], (
                f"step {step} changed the rank of '{path}' from {ranks[path]} to {layer.rank}: "
                "a dead component is one whose gate is zero, it stays in its place"
            )
            moved = _moved_component(stepped[path], layer.A.detach())
            assert moved is None or run.method.config.turns_basis, (
                f"step {step} moved component {moved} of '{path}' elsewhere"
            )
            _check_terms(f"'{path}' after step {step}", layer, run.method.factors(layer))


def a_missing_gradient_is_named(make: MethodFactory) -> None:
    """Check that `after_step` names a parameter without a gradient, if it needs gradients."""
    run = start(make())
    run.train(range(_HALF))
    rates = {group["name"]: LR for group in run.optimizer.param_groups}
    names = [f"{path}.{kind}" for path, m in run.layers.items() for kind, _ in m.named_factors()]
    try:
        info = StepInfo(_HALF, STEPS, rates, run.optimizer.state)
        run.method.after_step(run.layers, info)
    except MethodError as error:
        message = str(error)
    except Exception as error:
        kind = type(error).__name__
        raise AssertionError(f"missing gradients raise {kind}, not MethodError") from error
    else:
        return
    named = any(name in message for name in names)
    assert named, f"the error on missing gradients names no parameter: {message}"


def layers_of_rank_zero_work(make: MethodFactory) -> None:
    """Check that a layer of rank 0 equals its base layer while other layers train."""
    for path in ("0", "2"):
        run = start(make(), emptied=path)
        empty = run.layers[path]
        penalty = run.method.penalty(run.layers)
        finite = penalty is None or bool(penalty.isfinite())
        assert finite, "the penalty is not finite with a layer of rank 0"
        losses = run.train(range(STEPS))
        assert losses[-1] < losses[0], "the loss does not fall if a layer has rank 0"
        x = layer_inputs(empty)
        same = torch.equal(empty(x), base_output(empty, x))
        assert same, f"'{path}' has rank 0 but is not its base layer"
        rank = run.method.factors(empty).rank
        assert rank == 0, f"'{path}' has rank 0, its factors {rank}"
        summary = run.method.summary(run.layers)
        total = sum(layer.rank for layer in run.layers.values())
        assert summary.total == total, f"summary counts {summary.total} components, not {total}"
        run.method.details(run.layers)
        run.method.deliverable(run.layers)
        _through_a_file(run.method.state_dict())


def a_finished_adapter_is_a_start_or_refused(make: MethodFactory) -> None:
    """Check that `start_from` starts training at a given adapter, or raises MethodError."""
    run = start(make(), begun=False)
    updates = {}
    for rank, (path, layer) in zip((3, 0), run.layers.items(), strict=True):
        n_out, n_in = layer.B.shape[0], layer.A.shape[1]
        A, B = (torch.randn(s, generator=generator(5)) for s in ((rank, n_in), (n_out, rank)))
        updates[path] = LowRankFactors(A.double(), B.double() / 8)
    try:
        run.method.start_from(run.layers, updates)
    except MethodError:
        return
    for path, layer in run.layers.items():
        factors, given = run.method.factors(layer), updates[path]
        same = factors.rank == given.rank and torch.allclose(factors.dense(), given.dense())
        assert same, f"'{path}' does not begin with the update that it was given"
    run.method.begin(run.layers, total_steps=STEPS)
    losses = run.train(range(STEPS))
    assert losses[-1] < losses[0], "the loss does not fall after a start from a finished adapter"


def a_run_resumes_bit_equal(make: MethodFactory) -> None:
    """Check that a run stopped half-way and resumed from a safetensors file ends bit-equal.

    A Trainer loads the parameters before `begin`; other callers may load them after it. The
    method's own state is always loaded last.
    """
    straight = start(make())
    losses = straight.train(range(STEPS))
    for parameters_first in (True, False):
        halted = start(make())
        first_half = halted.train(range(_HALF))
        resumed = _resume(halted, make, parameters_first=parameters_first)
        second_half = resumed.train(range(_HALF, STEPS))
        assert first_half + second_half == losses, "the resumed run has other losses"
        changed = first_difference(straight.state(), resumed.state())
        assert changed is None, f"the resumed run ends with another '{changed}'"
        summaries = [run.method.summary(run.layers) for run in (straight, resumed)]
        assert summaries[0] == summaries[1], f"the summaries differ: {summaries}"
        details = [run.method.details(run.layers) for run in (straight, resumed)]
        assert details[0] == details[1], f"the details differ: {details}"


def beginning_again_changes_nothing(make: MethodFactory) -> None:
    """Check that `begin` changes no parameter, and that a second call changes nothing."""
    once, twice = start(make()), start(make())
    before = twice.state()
    twice.method.begin(twice.layers, total_steps=twice.total_steps)
    changed = first_difference(before, twice.state())
    assert changed is None, f"a second begin changed '{changed}'"
    unbegun = start(make(), begun=False)
    net = unbegun.net.state_dict()
    changed = first_difference(net, {name: before[name] for name in net})
    assert changed is None, f"begin changed '{changed}'"
    assert once.train(range(STEPS)) == twice.train(range(STEPS)), "a second begin changed the run"
    changed = first_difference(once.state(), twice.state())
    assert changed is None, f"a second begin changed how '{changed}' ends"


def _resume(halted: Run, make: MethodFactory, *, parameters_first: bool) -> Run:
    """Start a run with a fresh method, and load the state of the stopped run."""
    state = _through_a_file(halted.method.state_dict())
    run = start(make(), seed=99, begun=not parameters_first)
    run.net.load_state_dict(halted.net.state_dict())
    run.optimizer.load_state_dict(halted.optimizer.state_dict())
    if parameters_first:
        run.method.begin(run.layers, total_steps=run.total_steps)
    run.method.load_state_dict(state)
    changed = first_difference(state, run.method.state_dict())
    assert changed is None, f"'{changed}' of the state changes when it is loaded"
    return run


def _through_a_file(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Write a method's state to a safetensors file and read it back."""
    for name, tensor in state.items():
        kind = type(tensor).__name__
        assert isinstance(tensor, Tensor), f"'{name}' of the state is a {kind}, no tensor"
    try:
        back: dict[str, Tensor] = load(save(dict(state)))
    except (ValueError, RuntimeError) as error:
        raise AssertionError(f"the state does not fit a safetensors file: {error}") from error
    return back


def _moved_component(before: Tensor, after: Tensor) -> int | None:
    """Return a component whose row of A (r, in) moved to another row; None if all stay."""
    for i, row in enumerate(after):
        if torch.equal(row, before[i]) or not row.any():
            continue
        for j, old in enumerate(before):
            if torch.equal(row, old):
                return j
    return None


def _check_terms(where: str, layer: LowRankLinear, factors: LowRankFactors) -> None:
    """Check that component i of the factors is `scaling * d_i * B_i A_i` of the layer."""
    assert factors.rank == layer.rank, (
        f"{where} has {layer.rank} components, its factors have {factors.rank}"
    )
    A, B = layer.A.detach(), layer.scaling * layer.B.detach()
    if layer.d is not None:
        B = B * layer.d.detach()
    components = torch.einsum("or,ri->roi", B, A)  # (r, out, in)
    terms = torch.einsum("or,ri->roi", factors.B, factors.A)
    off = (components - terms).abs().amax(dim=(1, 2))  # (r,)
    worst = int(off.argmax())
    assert off[worst] <= 1e-12, (
        f"{where}: component {worst} of the factors is not component {worst} of the layer"
    )
