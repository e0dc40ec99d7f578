"""What is not finite stops the run and is named, or its step is left out, with everything in it."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import TrainerCallback

from methods.base import AdapterMethod, LowRankLinear, StepInfo
from methods.inject import inject
from methods.registry import create
from sora_cli.app import run
from sora_cli.core.errors import SoraError
from sora_cli.model.base import Base
from sora_cli.recipe.recipe import Recipe
from sora_cli.report import read_report
from sora_cli.tasks import create_task
from sora_cli.train.callback import MethodCallback, attach
from sora_cli.train.non_finite import IN_A_ROW, FiniteGuard, guard_steps
from sora_cli.train.trainer import AdapterTrainer, build_trainer
from tests.helpers_methods import EXAMPLES, method_block
from tests.helpers_models import tiny_bert
from tests.helpers_runs import pair_rows, tiny_tokenizer, write_recipe
from tests.matrix import rest_is_long
from tests.present import present

LAYER = "bert.encoder.layer.1.attention.self.value"
CHECKPOINT = Path("somewhere/checkpoints/step-000001")


class Made:
    """A trainer with all its parts, whose losses and parameters can be spoiled at will.

    Attributes:
        spoil: called with the step (from 1), the micro-batch (from 0) and its loss.
        losses: the means of the micro-batches' losses, by step.
    """

    def __init__(
        self, tmp_path: Path, method: str = "sora", *, kind: str = "classification", **training: Any
    ) -> None:
        self.trainer = _trainer(tmp_path, method, kind, training)
        self.spoil: Callable[[int, int, Any], Any] = lambda _, __, loss: loss
        self.losses: list[float] = []
        self._watch_losses()
        self.method: AdapterMethod = create(method, **EXAMPLES[method])
        self.layers: dict[str, LowRankLinear] = inject(
            self.trainer.model,
            self.method,
            exclude=["classifier"],
            trainable=["classifier"],
            generator=torch.Generator().manual_seed(0),
        )
        self.hooks: MethodCallback = attach(self.trainer, self.method, self.layers)
        self.guard: FiniteGuard = guard_steps(
            self.trainer,
            self.hooks,
            policy=self.trainer.recipe.training.non_finite,
            last_checkpoint=lambda: CHECKPOINT,
        )

    def _watch_losses(self) -> None:
        """Before `attach`, which must have the last word on the loss."""
        inner, place = self.trainer.compute_loss, {"step": 0, "part": 0}

        def compute_loss(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            step = self.trainer.state.global_step + 1
            part = 0 if step != place["step"] else place["part"] + 1
            place.update(step=step, part=part)
            loss = self.spoil(step, part, inner(model, inputs, *args, **kwargs))
            if part == 0:
                self.losses.append(0.0)
            self.losses[-1] += (
                float(loss.detach()) / self.trainer.current_gradient_accumulation_steps
            )
            return loss

        self.trainer.compute_loss = compute_loss

    def at(self, step: int, change: Callable[[], object]) -> None:
        """Do something before a step's first micro-batch."""
        before = TrainerCallback()

        def on_step_begin(*_: Any, **__: Any) -> None:
            if self.trainer.state.global_step + 1 == step:
                change()

        before.on_step_begin = on_step_begin
        self.trainer.add_callback(before)

    def error(self) -> list[str]:
        """Train; the lines of the error it must end with."""
        with pytest.raises(SoraError) as caught:
            self.trainer.train()
        lines = caught.value.lines()
        assert len(lines) <= 3
        assert all(len(line) < 200 for line in lines)
        return lines

    def state(self) -> dict[str, torch.Tensor]:
        """All that a step changes: parameters, moments, what the method remembers."""
        model, optimizer = self.trainer.model, self.trainer.optimizer
        found = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
        for number, entry in optimizer.state_dict()["state"].items():
            found |= {f"{number}.{key}": torch.as_tensor(v).clone() for key, v in entry.items()}
        return found | {f"method.{n}": t.clone() for n, t in self.method.state_dict().items()}


def _trainer(tmp_path: Path, method: str, kind: str, training: dict[str, Any]) -> AdapterTrainer:
    defaults = {"epochs": 3, "batch_size": 8, "evaluate": "no", "checkpoint": "no"}
    recipe = Recipe(
        model={"path": "unused"},
        task={"name": f"sequence-{kind}"},
        data={"path": "unused"},
        method=method_block(method),
        training={**defaults, "learning_rate": 1e-3, **training},
    )
    task = create_task(recipe.task, recipe.data)
    raw = Dataset.from_list(pair_rows(40, regression=kind == "regression"))
    task.bind(raw)
    options = task.model_options()
    model = tiny_bert(num_labels=options["num_labels"], problem_type=options["problem_type"])
    tokenizer = tiny_tokenizer()
    base = Base(model, tokenizer, "tiny", "tiny", None, (), ("classifier",))
    train = task.encode(raw, tokenizer)
    return build_trainer(recipe, task, base, tmp_path, train=train)


@pytest.mark.parametrize("accumulation", rest_is_long([4, 1]))
@pytest.mark.parametrize("method", EXAMPLES)
def test_a_poisoned_factor_stops_the_run_before_its_step(
    tmp_path: Path, method: str, accumulation: int
) -> None:
    made = Made(tmp_path, method, gradient_accumulation=accumulation)
    before: list[dict[str, torch.Tensor]] = []

    def poison() -> None:
        made.layers[LAYER].A.data[1, 2] = math.nan
        before.append(made.state())

    made.at(3, poison)
    what, where, hint = made.error()
    assert what == f"step 3: the loss is nan, first in the output of {LAYER}, whose A is not finite"
    assert where == f"last checkpoint: {CHECKPOINT}"
    assert "training.learning_rate=0.0005" in hint
    assert "training.non_finite=skip" in hint
    assert made.trainer.state.global_step == 2
    _assert_same(made.state(), before[0])


def _assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=0, equal_nan=True)


def test_a_damaged_base_model_is_named(tmp_path: Path) -> None:
    """There a lower learning rate is no help."""
    made = Made(tmp_path)
    norm = made.trainer.model.bert.encoder.layer[0].output.LayerNorm
    norm.weight.data[3] = math.inf
    what, _, hint = made.error()
    name = "bert.encoder.layer.0.output.LayerNorm"
    assert what.startswith("step 1: the loss is nan")
    assert f"first in the output of {name}, whose weight is not finite" in what
    assert hint == f"the base model itself is damaged: {name}.weight is not finite; see model.path"


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_a_learning_rate_far_too_high(tmp_path: Path, policy: str) -> None:
    made = Made(tmp_path, learning_rate=1e35, warmup=0, non_finite=policy)
    what, _, hint = made.error()
    assert "training.learning_rate=5e+34" in hint
    if policy == "stop":
        assert what.startswith("step 2: ")
        assert made.guard.skipped == []
    else:
        assert what.startswith("step 11 is the 10th bad step in a row: ")
        assert "non_finite" not in hint
        assert made.guard.skipped == list(range(2, 11))
    assert "first in the output of " in what


def test_infinite_loss_with_finite_outputs_and_gradients(tmp_path: Path) -> None:
    made = Made(tmp_path, kind="regression", max_grad_norm=0)
    made.at(2, lambda: made.trainer.model.classifier.bias.data.fill_(1e25))
    gradients: list[bool] = []
    made.trainer.add_callback(watch := TrainerCallback())
    watch.on_pre_optimizer_step = lambda *_, **__: gradients.append(True)
    what, *_ = made.error()
    assert what.startswith("step 2: the loss is inf, every module's output finite")
    assert "(largest: 1.0e+25, classifier)" in what
    grads = [p.grad for p in made.trainer.model.parameters() if p.grad is not None]
    assert grads
    assert len(gradients) == 1  # of the first step; in the second the guard came before


@pytest.mark.parametrize("clip", [0.0, 1.0])
@pytest.mark.parametrize(
    ("factor", "said"),
    [
        (math.inf, f"step 2: the gradient of {LAYER}.B is (inf|nan)$"),
        (math.nan, f"step 2: the gradient of {LAYER}.B is nan$"),
        (1e30, rf"step 2: the gradient's norm is inf; its largest part is {LAYER}.B, \d.\de\+2\d$"),
    ],
)
def test_gradients_with_a_finite_loss(
    tmp_path: Path, factor: float, said: str, clip: float
) -> None:
    """Also one whose norm overflows: clipping would make a step of zeros of it."""
    made = Made(tmp_path, max_grad_norm=clip, gradient_accumulation=2)
    made.at(2, lambda: made.layers[LAYER].B.register_hook(lambda g: g * factor))
    assert re.match(said, made.error()[0])


@pytest.mark.parametrize("accumulation", rest_is_long([4, 1]))
@pytest.mark.parametrize("method", EXAMPLES)
def test_a_skipped_step_changes_nothing(tmp_path: Path, method: str, accumulation: int) -> None:
    made = Made(
        tmp_path, method, gradient_accumulation=accumulation, non_finite="skip", logging_steps=1
    )
    states: dict[int, dict[str, torch.Tensor]] = {}
    told: list[int] = []
    after_step = made.method.after_step

    def watch(layers: Any, info: StepInfo) -> None:
        told.append(info.step + 1)
        after_step(layers, info)

    made.method.after_step = watch  # type: ignore[method-assign]
    for step in (4, 5):
        made.at(step, lambda step=step: states.update({step: copy.deepcopy(made.state())}))
    last = accumulation - 1
    made.spoil = lambda step, part, loss: loss * math.nan if (step, part) == (4, last) else loss
    made.trainer.train()
    _assert_same(states[5], states[4])
    assert made.guard.skipped == [4]
    assert made.hooks.skipped == 1
    assert made.trainer.state.global_step == 15
    assert told == [step for step in range(1, 16) if step != 4]
    parameters = [p for p in made.trainer.model.parameters() if p.requires_grad]
    assert all(bool(p.isfinite().all()) for p in parameters)


def test_skipped_gradient(tmp_path: Path) -> None:
    made = Made(tmp_path, non_finite="skip")
    made.at(4, lambda: setattr(made, "handle", made.layers[LAYER].A.register_hook(_infinite)))
    made.at(5, lambda: made.handle.remove())  # type: ignore[attr-defined]
    made.trainer.train()
    assert made.guard.skipped == [4]
    assert bool(made.layers[LAYER].A.isfinite().all())


def _infinite(gradient: torch.Tensor) -> torch.Tensor:
    return gradient * math.inf


def test_logged_losses_are_means_over_the_steps_taken(tmp_path: Path) -> None:
    made = Made(tmp_path, "lora", non_finite="skip", logging_steps=3, gradient_accumulation=2)
    bad = {2, 4, 5, 6}
    made.spoil = lambda step, part, loss: loss * math.inf if step in bad and part == 1 else loss
    made.trainer.train()
    logged = [e["loss"] for e in made.trainer.state.log_history if "loss" in e]
    expected = []
    for begin in range(1, 16, 3):
        taken = [made.losses[s - 1] for s in range(begin, begin + 3) if s not in bad]
        expected.append(sum(taken) / len(taken) if taken else math.nan)
    assert logged == pytest.approx(expected, rel=1e-5, nan_ok=True)
    good = [made.losses[s - 1] for s in range(1, 16) if s not in bad]
    whole = made.trainer.state.log_history[-1]["train_loss"]
    assert whole == pytest.approx(sum(good) / len(good), rel=1e-5)


def test_nine_bad_steps_are_skipped_ten_stop_the_run(tmp_path: Path) -> None:
    made = Made(tmp_path / "nine", non_finite="skip", epochs=4)
    made.spoil = lambda step, _, loss: loss * math.nan if 2 <= step <= IN_A_ROW else loss
    made.trainer.train()
    assert made.guard.skipped == list(range(2, IN_A_ROW + 1))
    made = Made(tmp_path / "ten", non_finite="skip", epochs=4)
    made.spoil = lambda step, _, loss: loss * math.nan if 2 <= step <= IN_A_ROW + 1 else loss
    what, where, _ = made.error()
    assert what.startswith("step 11 is the 10th bad step in a row: the loss is nan")
    assert where == f"last checkpoint: {CHECKPOINT}"


def _scaled(made: Made, scale: float) -> None:
    """A real gradient scaler, as a GPU's fp16 has it."""
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    accelerator = made.trainer.accelerator
    accelerator.scaler, accelerator.native_amp = scaler, True
    accelerator.backward = lambda loss, **_: scaler.scale(loss).backward()


def test_infinite_gradients_are_left_to_a_gradient_scaler(tmp_path: Path) -> None:
    made = Made(tmp_path)
    _scaled(made, 4.0)
    made.at(3, lambda: setattr(made, "handle", made.layers[LAYER].A.register_hook(_infinite)))
    made.at(4, lambda: made.handle.remove())  # type: ignore[attr-defined]
    made.trainer.train()
    assert made.trainer.state.global_step == 15
    assert made.hooks.skipped == 1
    assert made.guard.skipped == []


def test_but_not_where_the_scale_is_not_the_cause(tmp_path: Path) -> None:
    made = Made(tmp_path / "gradient")
    _scaled(made, 1.0)
    made.at(3, lambda: made.layers[LAYER].A.register_hook(_infinite))
    assert made.error()[0].startswith("step 4: the gradient of ")  # 1.0 is halved after the third
    made = Made(tmp_path / "loss")
    _scaled(made, 4.0)
    made.spoil = lambda step, _, loss: loss * math.nan if step == 3 else loss
    assert made.error()[0].startswith("step 3: the loss is nan")


@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_a_skipped_step_under_a_gradient_scaler(tmp_path: Path, factor: float) -> None:
    """The gradients are unscaled where a GPU's are: before they are clipped."""
    made = Made(tmp_path, non_finite="skip")
    _scaled(made, 4.0)
    trainer = made.trainer
    trainer.accelerator.unscale_gradients = lambda: trainer.accelerator.scaler.unscale_(
        trainer.optimizer.optimizer
    )
    made.spoil = lambda step, _, loss: loss * factor if step == 3 else loss
    trainer.train()
    assert made.guard.skipped == [3]
    assert made.hooks.skipped == 1
    assert all(bool(p.isfinite().all()) for p in trainer.model.parameters())


@pytest.mark.parametrize(("others", "finite"), [([1, 1], True), ([1, 0], False)])
def test_all_processes_decide_as_one(tmp_path: Path, others: list[int], finite: bool) -> None:
    made = Made(tmp_path)
    gathered = SimpleNamespace(gather=lambda mine: torch.tensor([int(mine), *others]))
    made.guard.trainer = SimpleNamespace(  # type: ignore[assignment]
        args=SimpleNamespace(world_size=3, device="cpu"), accelerator=gathered
    )
    assert made.guard._all_finite([torch.tensor(1.0)]) is finite
    assert made.guard._all_finite([torch.tensor(math.nan)]) is False


def test_a_resumed_guard_goes_on_counting(tmp_path: Path) -> None:
    made = Made(tmp_path, non_finite="skip")
    made.spoil = lambda step, _, loss: loss * math.nan if step > 11 else loss
    made.trainer.train()
    assert made.guard.skipped == [12, 13, 14, 15]
    other = Made(tmp_path, non_finite="skip")
    other.guard.restore(made.guard.progress())
    assert other.guard.progress() == made.guard.progress()
    other.spoil = lambda _, __, loss: loss * math.nan
    assert other.error()[0].startswith(
        "step 6 is the 10th bad step in a row"
    )  # four before, six here


def _error_lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    told = capsys.readouterr().err
    return told[told.index("error: ") :].splitlines()


def test_the_command_stops(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = write_recipe(tmp_path, tiny_bert(num_labels=2))
    words = ["training.learning_rate=1e35", "training.warmup=0", "training.checkpoint=1"]
    assert run(["train", str(recipe), *words]) == 2
    what, where, hint = _error_lines(capsys)
    assert what.startswith("error: step 2: the loss is nan, first in the output of ")
    assert where.strip() == f"last checkpoint: {tmp_path / 'out/checkpoints/step-000001'}"
    assert "training.learning_rate=5e+34, or leave such steps out" in hint
    report = present(read_report(tmp_path / "out"))
    assert report.status == "failed"
    assert "step 2: the loss is nan" in str(report.error)


def test_the_command_counts_what_it_skips(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    inner, seen = AdapterTrainer.compute_loss, {"n": 0}

    def compute_loss(self: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        loss = inner(self, model, *args, **kwargs)
        seen["n"] += model.training
        return loss * math.nan if model.training and seen["n"] in (3, 7) else loss

    monkeypatch.setattr(AdapterTrainer, "compute_loss", compute_loss)
    recipe = write_recipe(tmp_path, tiny_bert(num_labels=2))
    assert run(["train", str(recipe), "--no-verify", "training.non_finite=skip"]) == 0
    report = present(read_report(tmp_path / "out"))
    assert report.non_finite_steps == [3, 7]
    assert report.skipped_steps == 2
    event = "2 of 12 steps were left out because their loss or gradient was not finite: 3, 7"
    assert event in report.events
    assert f"note: {event}" in capsys.readouterr().err
