"""The checks of a method that need transformers: a Trainer, adapter files, merging.

    import pytest
    from sora_cli.verify.contract import CHECKS

    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
    def test_contract(check):
        check(lambda **options: MyMethod(MyConfig(**options)))

As in `methods.contract`, a check takes a factory of fresh methods and raises AssertionError with
the reason. `check(make, attach=mine)` tests another integration than
`sora_cli.train.callback.attach`. A check trains a tiny BERT on the CPU for a few steps, well below
a second, and leaves no file behind.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from methods.contract.net import MethodFactory, first_difference, largest_difference
from methods.factors import LowRankFactors
from sora_cli.adapter.adapter import Adapter
from sora_cli.adapter.apply import apply_adapter
from sora_cli.adapter.in_model import linear_of, load_head, names_by_parameter
from sora_cli.adapter.reading import read_adapter
from sora_cli.core.errors import SoraError
from sora_cli.merge.merge import merge_adapter
from sora_cli.train.callback import attach as default_attach
from sora_cli.verify.contract_trial import (
    HEAD,
    STEPS,
    Attach,
    batch,
    contents,
    load_model,
    logits,
    start,
    tiny_model,
    trained,
    trial_folder,
)

__all__ = ["BASELINE_CHECKS", "CHECKS", "Attach", "Check", "MethodFactory"]


class Check(Protocol):
    """One check; it raises AssertionError with the reason."""

    __name__: str

    def __call__(self, make: MethodFactory, *, attach: Attach = default_attach) -> None:
        """Check the methods that `make` returns."""


def hooks_run_once_per_optimiser_step(
    make: MethodFactory, *, attach: Attach = default_attach
) -> None:
    """Check that `after_step` runs once per step, after it, before gradients are cleared.

    An epoch has 7 micro-batches, and 3 of them make a step. Step numbers start at 0, and the
    learning rates are those that the step used.
    """
    with trial_folder() as folder:
        trial = start(make, folder, attach)
        trial.trainer.train()
    calls, steps = trial.watch.calls, trial.watch.steps
    assert len(steps) == STEPS, f"the run took {len(steps)} optimiser steps, not {STEPS}"
    assert len(calls) == STEPS, f"after_step ran {len(calls)} times in {STEPS} optimiser steps"
    for number, (call, step) in enumerate(zip(calls, steps, strict=True)):
        where, info = f"after_step of optimiser step {number}", call.info
        assert info.step == number, f"{where} was told it is step {info.step}"
        assert info.total_steps == STEPS, f"{where} was told of a run of {info.total_steps} steps"
        assert call.taken == number + 1, f"{where} ran after {call.taken} steps, not {number + 1}"
        assert not call.without_gradient, f"{where}: no gradient on {call.without_gradient}"
        rates = {name: info.learning_rates.get(name) for name in step.rates}
        assert rates == step.rates, f"{where} was told of rates {rates}, the step's: {step.rates}"


def penalty_is_in_the_training_loss_once(
    make: MethodFactory, *, attach: Attach = default_attach
) -> None:
    """Check that a step's gradient holds the penalty's once, for any number of micro-batches."""
    with trial_folder() as folder:
        trial = start(make, folder, attach)
        trial.trainer.train()
    for number, step in enumerate(trial.watch.steps):
        assert abs(step.penalty - 1) <= 1e-5, (
            f"the gradient of optimiser step {number} holds the penalty's {step.penalty:g} times"
        )


def penalty_is_not_in_the_evaluation_loss(
    make: MethodFactory, *, attach: Attach = default_attach
) -> None:
    """Check that `trainer.evaluate()` gives the loss of the plain weights plus dW."""
    with trial_folder() as folder:
        trial = start(make, folder, attach)
        trial.trainer.train()
        loss = trial.trainer.evaluate()["eval_loss"]
    plain = tiny_model()
    head = trial.trainer.model.get_submodule(HEAD).state_dict()
    with torch.no_grad():
        add_updates(plain, {path: trial.method.factors(m) for path, m in trial.layers.items()})
        load_head(plain, {f"{HEAD}.{name}": tensor for name, tensor in head.items()})
        expected = float(plain(**batch()).loss)
    assert abs(loss - expected) <= 1e-4 * expected, (
        f"the evaluation loss is {loss:g}, the plain model's {expected:g}"
    )


def the_example_trains(make: MethodFactory, *, attach: Attach = default_attach) -> None:
    """Check that the options of `EXAMPLE` are valid, and train a few steps to finite numbers."""
    method = type(make())
    options = method.config_class
    try:
        small = options(**options.EXAMPLE)
        with trial_folder() as folder:
            trial = start(lambda: method(small), folder, attach)
            trial.trainer.train()
    except ValueError as error:
        raise AssertionError(f"the options of EXAMPLE do not work: {error}") from error
    for name, parameter in trial.trainer.model.named_parameters():
        assert parameter.isfinite().all(), f"'{name}' is not finite after a run with EXAMPLE"


def a_checkpoint_resumes_bit_equal(make: MethodFactory, *, attach: Attach = default_attach) -> None:
    """Check that a fresh model and method resume the stock Trainer's checkpoint exactly."""
    with trial_folder() as folder:
        straight = start(make, folder, attach, save_strategy="steps", save_steps=2)
        straight.trainer.train()
        resumed = start(make, folder, attach, seed=1, save_strategy="steps", save_steps=2)
        try:
            resumed.trainer.train(resume_from_checkpoint=str(folder / "checkpoint-2"))
        except OSError as error:
            raise AssertionError(f"something is missing in the checkpoint: {error}") from error
    steps = [call.info.step for call in resumed.watch.calls]
    expected = list(range(2, STEPS))
    assert steps == expected, f"resumed after 2 steps, after_step was told of the steps {steps}"
    changed = first_difference(straight.state(), resumed.state())
    assert changed is None, f"the resumed run ends with another '{changed}'"


def a_saved_adapter_loads_equal(make: MethodFactory, *, attach: Attach = default_attach) -> None:
    """Check that a saved adapter gives the same factors and outputs on a fresh base model."""
    with trial_folder() as folder:
        trial = trained(make, folder, attach)
        adapter = read_adapter(folder / "adapter")
    for path, layer in trial.layers.items():
        stored = adapter.layers.get(path)
        live = trial.method.factors(layer).drop_zeros()
        rank = 0 if stored is None else stored.drop_zeros().rank
        assert rank == live.rank, f"'{path}' has {live.rank} live components, {rank} are stored"
        same = stored is None or live.rank == 0 or (
            torch.equal(stored.A, live.A) and torch.equal(stored.B, live.B)
        )  # fmt: skip
        assert same, f"the factors of '{path}' are others once they are stored"
    fresh = tiny_model()  # seeded: the same base as the trained model's
    apply_adapter(fresh, adapter)
    off = largest_difference(logits(fresh), logits(trial.trainer.model))
    assert off <= 1e-5, f"the outputs are off by {off:.1e} once the adapter is stored and loaded"


def merging_repeats_to_the_byte(make: MethodFactory, *, attach: Attach = default_attach) -> None:
    """Check that the merged model gives the same outputs, and merging again the same bytes."""
    with trial_folder() as folder:
        trial = trained(make, folder, attach)
        adapter = read_adapter(folder / "adapter")
        for name in ("merged", "again"):  # no time, path or order of a set may enter the files
            merge_adapter(adapter, folder / name)
        written, again = (contents(folder / name) for name in ("merged", "again"))
        merged = load_model(folder / "merged")
    assert written.keys() == again.keys(), "merging again wrote other files"
    for name, content in written.items():
        assert content == again[name], f"merging again wrote another {name}"
    off = largest_difference(logits(merged), logits(trial.trainer.model))
    assert off <= 1e-4, f"the merged model's outputs are off by {off:.1e}"


def merging_twice_is_refused(make: MethodFactory, *, attach: Attach = default_attach) -> None:
    """Check that an adapter is not merged twice, not even by force."""
    with trial_folder() as folder:
        trained(make, folder, attach)
        adapter = read_adapter(folder / "adapter")
        merge_adapter(adapter, folder / "merged")
        for force in (False, True):
            refusal = _refusal(adapter, folder / "twice", base=folder / "merged", force=force)
            assert refusal, f"one adapter was merged twice (force={force})"
            assert "already" in refusal, f"merging twice is refused for another reason: {refusal}"


CHECKS: tuple[Check, ...] = (
    hooks_run_once_per_optimiser_step,
    penalty_is_in_the_training_loss_once,
    penalty_is_not_in_the_evaluation_loss,
    the_example_trains,
    a_checkpoint_resumes_bit_equal,
    a_saved_adapter_loads_equal,
    merging_repeats_to_the_byte,
    merging_twice_is_refused,
)
"""Every check of a low-rank method; each raises AssertionError with the reason."""

BASELINE_CHECKS: tuple[Check, ...] = (
    hooks_run_once_per_optimiser_step,
    penalty_is_in_the_training_loss_once,
    the_example_trains,
    a_checkpoint_resumes_bit_equal,
)
"""The checks of a baseline, which has no factors and no adapter files."""


def _refusal(adapter: Adapter, output: Path, *, base: Path, force: bool) -> str:
    """Return the reason why merging was refused; "" if it was not refused."""
    try:
        merge_adapter(adapter, output, base=str(base), force=force)
    except SoraError as error:
        return error.what
    return ""


def add_updates(model: nn.Module, layers: Mapping[str, LowRankFactors]) -> None:
    """Add each layer's B A to the model's weights: in float32, (B A) first, cast once.

    A refused layer (its shape, tied or quantised weights, a result that is not finite) may leave
    the model half merged.
    """
    names = names_by_parameter(model)
    for path, factors in layers.items():
        module = linear_of(model, path, (factors.B.shape[0], factors.A.shape[1]))
        weight = module.weight
        if not (isinstance(weight, Tensor) and weight.is_floating_point()):
            raise SoraError(f"'{path}' of the base model is quantised")
        tied = [name for name in names[id(weight)] if name != f"{path}.weight"]
        if tied:
            raise SoraError(
                f"'{path}' shares its weight with '{tied[0]}': merging would change both"
            )
        update = factors.B.float() @ factors.A.float()  # (out, in)
        if not isinstance(module, nn.Linear):
            update = update.T  # Conv1D stores (in, out)
        merged = (weight.float() + update.to(weight.device)).to(weight.dtype)
        if not bool(merged.isfinite().all()):
            raise SoraError(f"'{path}' would hold NaN or infinity as {weight.dtype}")
        weight.copy_(merged)
