"""Train adapter methods with any `transformers.Trainer`, also TRL's: `attach(trainer, method)`.

    layers = inject(model, method, generator=torch.Generator().manual_seed(0))
    trainer = Trainer(model, args, train_dataset=...)
    attach(trainer, method)
    trainer.train()
    save_adapter(model, method, "adapter")   # from sora_cli.adapter.saving

`attach` gives the optimiser the method's parameter groups and adds the method's penalty to the
training loss (never to evaluation). It calls the method once per optimiser step, before the
gradients are cleared, but not on a step that mixed precision skipped. It raises an error if the
trainer leaves out one of these calls.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import Trainer, TrainerCallback

from methods.base import AdapterMethod, Layers, LowRankLinear, StepInfo, optimizer_groups
from methods.inject import adapted_layers, has_peft_layers
from sora_cli.model.new_tokens import trained_rows
from sora_cli.train.checkpoint.resumable import Resumable
from sora_cli.train.checkpoint.trainer_internals import call_on_resume, plain_optimizer
from sora_cli.train.optimizers import keep_embeddings

_log = logging.getLogger(__name__)

STATE_FILE = "adapter_method.safetensors"
_PEFT = (
    "the model's adapters are PEFT's, which attach cannot train: train and save them without it, "
    "then make them smaller: sora prune ADAPTER -o OUT --max-differ 2% --unlabelled FILE; or take "
    "them off (model = model.unload()), and call methods.inject.inject(model, ...)"
)


def attach(
    trainer: Trainer,
    method: AdapterMethod,
    layers: Mapping[str, LowRankLinear] | None = None,
    *,
    head_lr: float | None = None,
) -> MethodCallback:
    """Train a method with a Trainer; call this before `trainer.train()`.

    Args:
        layers: the result of `inject`; None: the adapted layers in `trainer.model`.
        head_lr: learning rate of trained parameters outside the adapters; None: the trainer's.

    Raises:
        ValueError: the model has no adapters, or PEFT's; or the trainer's own optimiser lacks
            their groups.
    """
    adapted = dict(layers) if layers is not None else adapted_layers(trainer.model)
    if not adapted and method.config.low_rank:
        if has_peft_layers(trainer.model):
            raise ValueError(_PEFT)
        raise ValueError("the model has no adapters: call methods.inject.inject(model, ...) first")
    if trainer.optimizer is not None:
        _check_groups(trainer.optimizer, method, adapted)
    callback = MethodCallback(trainer, method, adapted)
    trainer.add_callback(callback)
    _wrap_loss(trainer, callback)
    call_on_resume(trainer, callback.note_resume)
    _wrap_optimizer(trainer, method, adapted, head_lr)
    return callback


class MethodCallback(TrainerCallback, Resumable):  # type: ignore[misc]
    """The callback that calls a method's hooks, and raises an error if it cannot.

    Attributes:
        skipped: number of optimiser steps skipped by mixed precision or by `skip_step`.
        resumed_from: the checkpoint that the trainer resumes from; None until it has been read.
        forked: the resumed checkpoint belongs to another run.
        method_state: the method's state to resume from; None: read it from that checkpoint.
    """

    def __init__(self, trainer: Trainer, method: AdapterMethod, layers: Layers) -> None:
        self.trainer, self.method, self.layers = trainer, method, layers
        self._live: list[int] = []
        self._counted: list[tuple[int, torch.Tensor]] = []  # step, live components
        self.skipped = 0
        self._last_live = 0
        self._seen = 0  # calls of `on_optimizer_step`, with skipped steps
        self._taken = 0  # steps taken by the optimiser since the last hook
        self._overflow = False  # a fused optimiser skipped the step
        self._left_out = False  # the current step must change nothing
        self._share = 0.0  # of the penalty, in the losses since the last hook; must be 1
        self._handle: Any = None
        self.resumed_from: Path | None = None
        self.forked = False
        self.method_state: Mapping[str, torch.Tensor] | None = None

    @property
    def live(self) -> list[int]:
        """Number of live components after each optimiser step; empty for a baseline.

        The counts stay on their device until this is read, so no step waits for the previous one.
        """
        self._read_counts()
        return self._live

    def _read_counts(self) -> None:
        counted, self._counted = self._counted, []
        alive = torch.stack([n for _, n in counted]).tolist() if counted else []
        for (step, _), now in zip(counted, alive, strict=True):
            if now == 0 and self._last_live:
                _log.warning(
                    "step %d: the last component of %s died; the adapter now does nothing",
                    step,
                    self.method.name,
                )
            self._live.append(now)
            self._last_live = now

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin the method's schedule, and load the method's state if the run is resumed."""
        self.method.begin(self.layers, total_steps=state.max_steps)
        self._seen = state.global_step
        self._last_live = int(self.method.alive(self.layers))
        if state.global_step:
            known = self.method_state
            if known is None:
                known = load_file(self._state_file(args, state))
            self.method.load_state_dict(known)
        if self.forked:
            info = self._step_info(state.global_step - 1, state.max_steps)
            self.method.take_over(self.layers, info)
        optimizer = plain_optimizer(self.trainer)
        self._handle = optimizer.register_step_post_hook(self._count_step)

    def _state_file(self, args: Any, state: Any) -> Path:
        """Return the file with the method's state in the resumed checkpoint."""
        folder = self.resumed_from or Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if not (folder / STATE_FILE).is_file():
            raise FileNotFoundError(
                f"checkpoint {folder} has no {STATE_FILE}: it was saved without attach(), "
                f"so {self.method.name} cannot resume from it"
            )
        return folder / STATE_FILE

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Call `after_step` unless the step was skipped.

        First check that the optimiser took exactly one step, and that its loss had one whole
        penalty.
        """
        self._seen += 1
        share, self._share = self._share, 0.0
        taken, self._taken = self._taken, 0
        overflow, self._overflow = self._overflow, False
        left_out, self._left_out = self._left_out, False
        if left_out or overflow or self.trainer.accelerator.optimizer_step_was_skipped:
            self.skipped += 1
            return
        # checked at every step: a Trainer subclass may step twice, or bypass compute_loss
        if taken != 1:
            raise RuntimeError(f"{taken} optimiser steps since the last hook of {self.method.name}")
        if abs(share - 1) > 1e-6:
            raise RuntimeError(
                f"the penalty of {self.method.name} reached the loss {share:g} times in this step, "
                "not once: compute_loss was replaced after attach(), or is not called"
            )
        info = self._step_info(state.global_step, state.max_steps)
        self.method.after_step(self.layers, info)
        if self.method.config.low_rank:
            self._counted.append((state.global_step, self.method.alive(self.layers)))

    def _step_info(self, step: int, total_steps: int) -> StepInfo:
        optimizer = plain_optimizer(self.trainer)
        rates = {g["name"]: g["lr"] for g in optimizer.param_groups if "name" in g}
        return StepInfo(step, total_steps, rates, optimizer.state)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check that `on_optimizer_step` was called for this step."""
        if self._seen != state.global_step:
            raise RuntimeError(
                f"step {state.global_step} ended, but {self.method.name} saw {self._seen} "
                "optimiser steps: this trainer's loop does not call on_optimizer_step"
            )

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the method's state beside the stock Trainer's checkpoint."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        method_state = self.method.state_dict()  # on every process: sharded states are gathered
        if state.is_world_process_zero and folder.is_dir():
            save_file(method_state, folder / STATE_FILE)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop counting the optimiser's steps, and read the live components from their device."""
        self._handle.remove()
        self._read_counts()

    def progress(self) -> dict[str, Any]:
        """Return the live components and the number of skipped steps."""
        return {"live": self.live, "skipped": self.skipped, "last_live": self._last_live}

    def restore(self, progress: dict[str, Any]) -> None:
        """Continue the counts from `progress`."""
        self._live, self._counted = list(progress["live"]), []
        self.skipped, self._last_live = progress["skipped"], progress["last_live"]
        if self.forked and self._live:  # `take_over` may have pruned components
            self._live[-1] = self._last_live = int(self.method.alive(self.layers))

    def note_resume(self, checkpoint: Path) -> None:
        """Note the resumed checkpoint's directory: it may lie outside this trainer's directory."""
        self.resumed_from = checkpoint

    def penalised(self, loss: torch.Tensor, *, divided_later: bool) -> torch.Tensor:
        """Add the penalty's share to a micro-batch's loss."""
        parts = self.trainer.current_gradient_accumulation_steps
        self._share += 1 / parts
        penalty = self.method.penalty(self.layers)
        if penalty is None:
            return loss
        # gradients add up over micro-batches: each adds its share of one penalty
        return loss + (penalty if divided_later else penalty / parts)

    def skip_step(self) -> None:
        """Mark the current step as left out; the caller has cleared its gradients."""
        self._left_out = True

    def _count_step(self, optimizer: Any, *_: Any) -> None:
        self._taken += 1
        # fused optimisers skip an infinite gradient inside step(); accelerate does not see it
        # until: accelerate > 1.15
        found_inf = getattr(optimizer, "found_inf", None)
        self._overflow = found_inf is not None and bool(found_inf)


def _wrap_loss(trainer: Trainer, callback: MethodCallback) -> None:
    inner = trainer.compute_loss

    def compute_loss(
        model: nn.Module,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
        **kwargs: Any,
    ) -> Any:
        result = inner(
            model, inputs, return_outputs, num_items_in_batch=num_items_in_batch, **kwargs
        )
        if not model.training:
            return result
        later = _divided_later(trainer, num_items_in_batch)
        if return_outputs:
            return callback.penalised(result[0], divided_later=later), result[1]
        return callback.penalised(result, divided_later=later)

    trainer.compute_loss = compute_loss


def _divided_later(trainer: Trainer, num_items_in_batch: Any) -> bool:
    """Return True if `training_step` will divide the loss by the number of micro-batches."""
    # the decision of `Trainer.training_step` (transformers 5.24), which has no public name
    # until: transformers 5.19
    scaled = getattr(trainer, "loss_is_scaled_for_ga", None)
    if scaled is None:
        scaled = trainer.compute_loss_func is not None or (
            trainer.model_accepts_loss_kwargs and num_items_in_batch is not None
        )
    return not scaled


def _wrap_optimizer(
    trainer: Trainer, method: AdapterMethod, layers: Layers, head_lr: float | None
) -> None:
    """Make `create_optimizer` use the method's parameter groups and the head's."""

    def create_optimizer(model: nn.Module | None = None) -> Any:
        if trainer.optimizer is None:
            model = trainer.model if model is None else model
            groups = _all_groups(trainer, model, method, layers, head_lr)
            cls, options = Trainer.get_optimizer_cls_and_kwargs(trainer.args, model)
            trainer.optimizer = cls(groups, **options)
            if options.get("optim_bits") == 8:
                keep_embeddings(trainer.optimizer, model)
        return trainer.optimizer

    trainer.create_optimizer = create_optimizer


def _all_groups(
    trainer: Trainer,
    model: nn.Module,
    method: AdapterMethod,
    layers: Layers,
    head_lr: float | None,
) -> list[dict[str, Any]]:
    lr, decay = trainer.args.learning_rate, trainer.args.weight_decay
    groups = optimizer_groups(method, layers, lr=lr, weight_decay=decay)
    adapters = {id(p) for layer in layers.values() for p in layer.parameters()}
    adapters |= {id(p) for group in groups for p in group["params"]}  # a baseline has no layers
    decayed = set(trainer.get_decay_parameter_names(model))
    # decay would shrink a token's row in each step, also in those without the token
    tokens = {id(rows.rows) for rows in trained_rows(model).values()}
    decayed -= {n for n, p in model.named_parameters() if id(p) in tokens}
    rest = [
        (n, p) for n, p in model.named_parameters() if p.requires_grad and id(p) not in adapters
    ]
    for name, params, weight_decay in (
        ("head", [p for n, p in rest if n in decayed], decay),
        ("head_no_decay", [p for n, p in rest if n not in decayed], 0.0),
    ):
        if params:
            group = {"name": name, "params": params, "weight_decay": weight_decay}
            groups.append({**group, "lr": lr if head_lr is None else head_lr})
    return groups


def _check_groups(optimizer: Any, method: AdapterMethod, layers: Layers) -> None:
    """Check that an optimiser made by the user has all the method's groups, by name."""
    names = {g.get("name") for g in optimizer.param_groups}
    wanted = [g["name"] for g in optimizer_groups(method, layers, lr=0.0, weight_decay=0.0)]
    missing = [name for name in wanted if name not in names]
    if missing:
        raise ValueError(
            f"the trainer's optimiser has no group named {', '.join(missing)}: build it from "
            f"method.param_groups(layers, lr=..., weight_decay=...) or let the trainer make it"
        )
