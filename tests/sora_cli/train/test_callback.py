"""`attach` in other people's trainers."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model, inject_adapter_in_model
from torch import nn
from transformers import Trainer, TrainingArguments

from methods.base import AdapterMethod, LowRankLinear, StepInfo
from methods.errors import MethodError
from methods.inject import inject
from methods.lora import Lora
from methods.registry import create
from sora_cli.train.callback import attach
from tests.helpers_models import tiny_bert, token_ids


class Watching(Lora):
    """LoRA with a penalty of 7 on every factor's sum, that notes how it is called."""

    name = "watching"

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.steps: list[StepInfo] = []
        self.with_gradient: list[bool] = []

    def penalty(self, layers: Any) -> torch.Tensor:
        return 7 * torch.stack([m.A.sum() + m.B.sum() for m in layers.values()]).sum()

    def after_step(self, layers: Any, info: StepInfo) -> None:
        self.steps.append(info)
        self.with_gradient.append(all(m.A.grad is not None for m in layers.values()))


def _rows(n: int = 16) -> Dataset:
    return Dataset.from_dict(
        {"input_ids": token_ids(n, 6).tolist(), "labels": [i % 3 for i in range(n)]}
    )


def _trainer(tmp_path: Path, cls: type[Trainer] = Trainer, **options: Any) -> Any:
    torch.manual_seed(0)
    model = tiny_bert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    defaults = {
        "per_device_train_batch_size": 4,
        "num_train_epochs": 1,
        "use_cpu": True,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "learning_rate": 1e-3,
        "max_grad_norm": 0.0,
    }
    args = TrainingArguments(str(tmp_path), **{**defaults, **options})
    return cls(model, args, train_dataset=_rows(), eval_dataset=_rows())


def _attached(trainer: Any, method: AdapterMethod | None = None) -> tuple[Any, dict[str, Any]]:
    method = method or Watching(Watching.config_class(r=2))
    generator = torch.Generator().manual_seed(0)
    layers = inject(
        trainer.model, method, exclude=["classifier"], trainable=["classifier"], generator=generator
    )
    attach(trainer, method)
    return method, layers


@pytest.mark.parametrize("accumulation", [1, 2, 4])
def test_hooks_run_once_per_optimiser_step_with_gradients(
    tmp_path: Path, accumulation: int
) -> None:
    trainer = _trainer(tmp_path, gradient_accumulation_steps=accumulation)
    method, _ = _attached(trainer)
    trainer.train()
    steps = 4 // accumulation
    assert [info.step for info in method.steps] == list(range(steps))
    assert all(info.total_steps == steps for info in method.steps)
    assert all(method.with_gradient)
    assert method.steps[0].learning_rates["factors"] == pytest.approx(1e-3)


@pytest.mark.parametrize("accumulation", [1, 4])
def test_penalty_is_in_the_gradient_once_whatever_the_accumulation(
    tmp_path: Path, accumulation: int
) -> None:
    """B's gradient is the task's plus exactly 7: the task's own is measured without the penalty."""

    def first_gradient(penalty: bool) -> torch.Tensor:
        trainer = _trainer(tmp_path, gradient_accumulation_steps=accumulation)
        method = Watching(Watching.config_class(r=2))
        if not penalty:
            method.penalty = lambda _: None  # type: ignore[method-assign]
        seen: list[torch.Tensor] = []
        method.after_step = lambda layers, _: seen.append(  # type: ignore[method-assign]
            next(iter(layers.values())).B.grad.clone()
        )
        _attached(trainer, method)
        trainer.train()
        return seen[0]

    difference = first_gradient(penalty=True) - first_gradient(penalty=False)
    torch.testing.assert_close(difference, torch.full_like(difference, 7.0), rtol=1e-4, atol=1e-4)


def test_penalty_is_not_in_the_evaluation_loss(tmp_path: Path) -> None:
    trainer = _trainer(tmp_path)
    method, layers = _attached(trainer)
    with torch.no_grad():
        expected = trainer.model.eval()(
            input_ids=torch.tensor(_rows()["input_ids"][:]),
            labels=torch.tensor(_rows()["labels"][:]),
        ).loss
    assert abs(float(method.penalty(layers).detach())) > 0.1
    assert trainer.evaluate()["eval_loss"] == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("optimizer", ["adamw_torch", "adamw_torch_fused"])
def test_no_hook_on_a_step_that_mixed_precision_skipped(tmp_path: Path, optimizer: str) -> None:
    """A real gradient scaler meets an infinite gradient in the second step."""
    trainer = _trainer(tmp_path, optim=optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    trainer.accelerator.scaler = scaler
    trainer.accelerator.native_amp = True
    trainer.accelerator.backward = lambda loss, **_: scaler.scale(loss).backward()
    method, layers = _attached(trainer)
    step, inner = {"n": 0}, trainer.training_step

    def training_step(model: nn.Module, *args: Any) -> Any:
        loss = inner(model, *args)
        if step["n"] == 1:
            next(iter(layers.values())).A.grad.fill_(float("inf"))
        step["n"] += 1
        return loss

    trainer.training_step = training_step
    trainer.train()
    assert trainer.state.global_step == 4
    assert [info.step for info in method.steps] == [0, 2, 3]


def test_error_if_the_loop_does_not_tell_of_optimiser_steps(tmp_path: Path) -> None:
    trainer = _trainer(tmp_path)
    _attached(trainer)
    trainer.callback_handler.on_optimizer_step = lambda _, __, control: control
    with pytest.raises(RuntimeError, match="does not call on_optimizer_step"):
        trainer.train()


def test_error_if_the_loss_is_replaced_after_attach(tmp_path: Path) -> None:
    trainer = _trainer(tmp_path)
    _attached(trainer)
    trainer.compute_loss = lambda model, inputs, **_: model(**inputs).loss
    with pytest.raises(RuntimeError, match="compute_loss was replaced"):
        trainer.train()


def test_error_if_the_optimiser_steps_twice(tmp_path: Path) -> None:
    trainer = _trainer(tmp_path)
    _attached(trainer)
    inner = trainer.training_step

    def training_step(*args: Any) -> Any:
        loss = inner(*args)
        trainer.optimizer.step()
        return loss

    trainer.training_step = training_step
    with pytest.raises(RuntimeError, match="2 optimiser steps"):
        trainer.train()


@pytest.mark.parametrize("wrapped", [True, False])
def test_adapters_of_peft_are_called_by_their_name(tmp_path: Path, *, wrapped: bool) -> None:
    trainer, method = _trainer(tmp_path), create("sora", r_max=2)
    config = LoraConfig(target_modules=["query"])
    if wrapped:
        trainer.model = get_peft_model(trainer.model, config)
    else:
        inject_adapter_in_model(config, trainer.model)
    with pytest.raises(ValueError, match=r"are PEFT's.*sora prune ADAPTER .*unload"):
        attach(trainer, method)
    with pytest.raises(MethodError, match="unload"):  # or it would adapt PEFT's factors
        inject(trainer.model, method, generator=torch.Generator())
    if wrapped:  # the way out that both of them name
        trainer.model = trainer.model.unload()
        assert inject(trainer.model, method, generator=torch.Generator())
        attach(trainer, method)


def test_error_without_adapters_or_without_their_groups(tmp_path: Path) -> None:
    trainer = _trainer(tmp_path)
    method = create("sora", r_max=2)
    with pytest.raises(ValueError, match="no adapters"):
        attach(trainer, method)
    layers = inject(trainer.model, method, generator=torch.Generator())
    own = torch.optim.AdamW(method.param_groups(layers, lr=1e-3, weight_decay=0.0)[:1])
    trainer.optimizer = own
    with pytest.raises(ValueError, match="gates"):
        attach(trainer, method)


def test_gates_get_their_own_group_and_the_head_its_own_rate(tmp_path: Path) -> None:
    trainer = _trainer(tmp_path, weight_decay=0.1)
    method = create("sora", r_max=2, gate_lr=0.5)
    layers = inject(
        trainer.model, method, exclude=["classifier"], trainable=["classifier"],
        generator=torch.Generator(),
    )  # fmt: skip
    attach(trainer, method, head_lr=1e-4)
    groups = {g["name"]: g for g in trainer.create_optimizer().param_groups}
    assert {n: (g["lr"], g["weight_decay"]) for n, g in groups.items()} == {
        "factors": (1e-3, 0.1),
        "gates": (0.5, 0.0),
        "head": (1e-4, 0.1),
        "head_no_decay": (1e-4, 0.0),
    }
    assert len(groups["gates"]["params"]) == len(layers)
    trained = {id(p) for p in trainer.model.parameters() if p.requires_grad}
    assert trained == {id(p) for g in groups.values() for p in g["params"]}


def test_resumed_run_gets_the_method_state_back(tmp_path: Path) -> None:
    """Half a run, saved by the stock Trainer, resumed: equal to the whole one to the last bit."""

    def run(resume: bool, **options: Any) -> dict[str, LowRankLinear]:
        trainer = _trainer(
            tmp_path, save_strategy="steps", save_steps=4, num_train_epochs=2, **options
        )
        method = create("adalora", init_r=3, target_r=1, t_init=1, t_final=2)
        _, layers = _attached(trainer, method)
        trainer.train(resume_from_checkpoint=resume or None)
        return layers

    whole = run(resume=False)
    resumed = run(resume=str(tmp_path / "checkpoint-4"))  # type: ignore[arg-type]
    for path, layer in whole.items():
        for name in ("A", "B", "d"):
            assert torch.equal(getattr(layer, name), getattr(resumed[path], name)), (path, name)


def test_the_state_is_that_of_the_checkpoint_resumed(tmp_path: Path) -> None:
    """Also into another directory, where a checkpoint of the same step lies about."""

    def run(folder: Path, resume: Path | None = None, seed: int = 0) -> dict[str, LowRankLinear]:
        options = {"save_strategy": "steps", "save_steps": 4, "num_train_epochs": 2, "seed": seed}
        trainer = _trainer(folder, **options)
        method = create("adalora", init_r=3, target_r=1, t_init=1, t_final=2)
        _, layers = _attached(trainer, method)
        trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
        return layers

    whole = run(tmp_path / "a")
    run(tmp_path / "b", seed=7)
    resumed = run(tmp_path / "b", resume=tmp_path / "a" / "checkpoint-4")
    for path, layer in whole.items():
        assert torch.equal(layer.A, resumed[path].A), path
        assert torch.equal(layer.d, resumed[path].d), path

    (tmp_path / "a" / "checkpoint-4" / "adapter_method.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="saved without attach"):
        run(tmp_path / "c", resume=tmp_path / "a" / "checkpoint-4")


@pytest.mark.versions
def test_trl_sft_trainer(tmp_path: Path) -> None:
    trl = pytest.importorskip("trl")
    from tests.helpers_models import tiny_gpt2
    from tests.helpers_runs import pair_rows, tiny_tokenizer

    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = "[SEP]"
    rows = Dataset.from_list([{"text": r["sentence1"]} for r in pair_rows(16)])
    args = trl.SFTConfig(
        output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none", save_strategy="no",
        per_device_train_batch_size=4, gradient_accumulation_steps=2, num_train_epochs=1,
        max_length=16, disable_tqdm=True,
    )  # fmt: skip
    model = tiny_gpt2()
    method = create("sora", r_max=2, threshold=0.01, l1=0.1)
    layers = inject(model, method, generator=torch.Generator().manual_seed(0))
    before = {path: layer.d.clone() for path, layer in layers.items()}
    trainer = trl.SFTTrainer(model=model, args=args, train_dataset=rows, processing_class=tokenizer)
    hooks = attach(trainer, method)
    trainer.train()
    assert len(hooks.live) == 2
    assert all(not torch.equal(before[path], layer.d) for path, layer in layers.items())


@pytest.fixture
def warnings() -> Iterator[list[str]]:
    """The messages that any logger gives as warnings."""
    given: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: given.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger().addHandler(handler)
    yield given
    logging.getLogger().removeHandler(handler)


def test_the_death_of_the_last_component_is_told_once(tmp_path: Path, warnings: list[str]) -> None:
    trainer = _trainer(tmp_path)
    method = create("sora", r_max=2, threshold=1.5)
    inject(trainer.model, method, generator=torch.Generator().manual_seed(0))
    hooks = attach(trainer, method)
    trainer.train()
    assert hooks.live[-1] == 0
    step = hooks.live.index(0)
    assert warnings == [
        f"step {step}: the last component of sora died; the adapter now does nothing"
    ]


@pytest.mark.parametrize("name", ["lora", "adalora"])
def test_no_such_warning_where_nothing_dies(tmp_path: Path, warnings: list[str], name: str) -> None:
    trainer = _trainer(tmp_path, learning_rate=0.0)  # AdaLoRA's gates start at zero and stay there
    method = create(name)
    inject(trainer.model, method, generator=torch.Generator().manual_seed(0))
    attach(trainer, method)
    trainer.train()
    assert not [message for message in warnings if "died" in message]
