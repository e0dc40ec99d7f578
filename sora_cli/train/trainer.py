"""The trainer of a run: `transformers.Trainer` with exact gradients, batches and evaluation."""

from __future__ import annotations

import math
import multiprocessing
import tempfile
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.data_loader import prepare_data_loader
from accelerate.utils import gather_object, send_to_device
from datasets import Dataset
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import ProgressCallback, TrainerCallback, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput

from methods.inject import adapted_layers, switched_off
from sora_cli.core.allocator import keep_freed_memory
from sora_cli.core.device import is_accelerated, is_cuda, process_state
from sora_cli.core.errors import SoraError
from sora_cli.core.interruption import held, leave_signals_to_parent
from sora_cli.core.out_of_memory import telling
from sora_cli.model.base import Base
from sora_cli.recipe.recipe import Cadence, Recipe
from sora_cli.report import MicroBatchChoice
from sora_cli.tasks.base import Task
from sora_cli.tasks.corpus import Reader
from sora_cli.tasks.encoded import Encoded, Predictions
from sora_cli.tasks.row_scores import RowScores
from sora_cli.train import switches
from sora_cli.train.batches import GroupedBatchSampler, SortedByLength
from sora_cli.train.checkpoint import generators
from sora_cli.train.checkpoint.trainer_internals import (
    ResumingTrainer,
    prepare_inputs,
    use_one_gpu,
)
from sora_cli.train.diagnosis import Pass
from sora_cli.train.loggers import split_loggers
from sora_cli.train.machine import check_machine
from sora_cli.train.out_of_memory import FEWER_BITS, SMALLER_MODEL, in_evaluation
from sora_cli.train.switch import Context

OutputsToKeep = Callable[[Any, Mapping[str, Any]], Tensor]
"""A function that takes the part to keep, (rows, ...), from a model's outputs and its batch."""


class AdapterTrainer(ResumingTrainer):
    """A Trainer with accumulated gradients that equal the gradients of the whole batch.

    The loss of each micro-batch is weighted by its share of the step's rows (or tokens), over all
    processes. (Plain Trainer passes the number of items to the model, which classification models
    ignore: four micro-batches then give four times the gradient.) Batches have rows of similar
    length, evaluation is sorted by length, and predictions come back in the data set's order.

    Attributes:
        predicts: for `sora predict`, whose option sets the rows per batch.
        reader: the model as it reads a corpus.
    """

    predicts = False

    def __init__(
        self, *, task: Task, recipe: Recipe, train: Encoded | None, base: Base, **options: Any
    ) -> None:
        super().__init__(model=base.model, train_dataset=train and train.dataset, **options)
        self.task, self.recipe, self.train_rows, self.base = task, recipe, train, base
        self.model_accepts_loss_kwargs = False  # so that Trainer takes plain mean losses
        self.sampler: GroupedBatchSampler | None = None
        self.loggers: list[TrainerCallback] = []  # of a training that has ended
        self._counts: deque[int] = deque()  # loss items of the step's remaining micro-batches
        self._compared: list[Any] = []  # micro-batches of a step that its loss has yet to look at
        self._seen: deque[Any] = deque()  # the remaining ones, when it has
        self.last: Predictions | None = None  # outputs of the evaluation after the last step
        self._keep: OutputsToKeep = task.outputs_to_keep
        self.step_contexts: Sequence[Callable[[], Context]] = ()
        self.note_pass: Callable[[Pass], None] = lambda _: None
        self.micro_batch: MicroBatchChoice | None = None  # with the forecast of a step's memory
        self.reader = Reader(base.processor, self._outputs, self._bare_outputs)

    @property
    def is_untrained(self) -> bool:
        """True if this trainer trains, and has not taken a step yet."""
        return self.train_rows is not None and self.state.global_step == 0

    def unprepare(self) -> None:
        """Undo the preparations for scoring, so that training prepares the model anew."""
        _unprepare(self.base.model)
        # transformers would log this time with each evaluation, but not after a resume
        # until: transformers > 5.24
        self.__dict__.pop("model_preparation_time", None)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[Any], Any]:
        """Return one optimiser step's micro-batches, and the loss items in it on all processes."""
        assert self.sampler is not None
        per_epoch = self.recipe.training.steps_per_epoch(self.sampler.rows)
        epoch, step = divmod(self.state.global_step, per_epoch)
        # before the epoch's first row is asked for: a loader that leaves out the rows before a
        # checkpoint does not pass the epoch's number on (transformers 5.12 and older)
        self.sampler.set_epoch(epoch)
        batches, _ = super().get_batch_samples(*args, **kwargs)
        counts = [
            0 if self.sampler.is_filler(step, number) else self.task.loss_items(batch)
            for number, batch in enumerate(batches)
        ]
        self._counts = deque(counts)
        # not before they are counted: reading a number back would wait for the device
        pinned = self.args.dataloader_pin_memory
        batches = send_to_device(batches, self.args.device, non_blocking=pinned)
        self._compared = list(batches) if self.task.options.LOSS_COMPARES == "step" else []
        items = torch.tensor(sum(counts))  # stays on the CPU: an upload would wait for the device
        if self.args.world_size > 1:
            items = self.accelerator.gather(items.to(self.args.device)).sum()
        return batches, items

    def _before_step(self, batches: Sequence[Any]) -> deque[Any]:
        """Let the task look at all rows of a step, without those that only fill it up.

        In the first pass of the step, as a resumed run sets its random numbers right before it.
        """
        real = [number for number, items in enumerate(self._counts) if items]
        model, random = self.model, generators.torch_states()
        model.train()
        with (
            torch.no_grad(),
            self.compute_loss_context_manager(),
            switches.in_loss(self.recipe, model, self.args.device.type),
        ):
            made = self.task.before_step(model, [batches[number] for number in real])
        generators.restore_torch(random)  # for the step's passes: dropout drops the same numbers
        whole = dict(zip(real, made, strict=True))
        return deque(whole.get(number, batch) for number, batch in enumerate(batches))

    def training_step(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Compute one micro-batch's loss and gradients, with the recipe's switches."""
        # A whole step, in order; lines in brackets are transformers' (5.24, `_run_epoch`).
        #   a loss that compares all rows of the step looks at them (`_before_step`)
        #   for each micro-batch, here:
        #     [loss, under autocast], weighted by its rows (`compute_loss`), plus the method's
        #     penalty (callback.py); [backward]
        #   [clip the gradient]; refuse it if it is not finite (non_finite.py)
        #   [optimiser]; the method's hook, which sees gradients and moments (callback.py)
        #   [learning rate; zero_grad]; remove dead components, write a checkpoint, show progress
        #   [log, evaluate]
        if self._compared:
            self._seen, self._compared = self._before_step(self._compared), []
        if self._seen:
            inputs = self._seen.popleft()
        random = generators.torch_states()
        with ExitStack() as stack:
            for context in self.step_contexts:
                stack.enter_context(context())
            loss: Tensor = super().training_step(model, inputs, *args, **kwargs)
        self.note_pass(Pass(inputs, random, loss))
        return loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Return a micro-batch's mean loss; in training weighted to give the step's mean."""
        device = self.args.device.type
        with switches.in_loss(self.recipe, model, device) if model.training else nullcontext():
            loss, outputs = self.task.batch_loss(model, inputs)
        if model.training and num_items_in_batch is not None:
            # Trainer divides by the number of micro-batches, and gradients are averaged over the
            # processes. The factor undoes both, so that every loss item of the step weighs the same
            share = self._counts.popleft() * self.args.world_size / num_items_in_batch
            loss = loss * share * self.current_gradient_accumulation_steps
        return (loss, outputs) if return_outputs else loss

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return micro-batches from our own sampler, in the CPU's memory."""
        assert self.train_rows is not None
        block = self.recipe.training
        # rows that are compared with each other must not be alike in length
        pool = {"pool": 1} if self.task.options.LOSS_COMPARES == "step" else {}
        self.sampler = GroupedBatchSampler(
            len(self.train_rows.lengths),
            self.train_rows.lengths if block.length_grouping else None,
            batch_size=block.batch_size,
            rows_per_pass=self.args.per_device_train_batch_size,
            seed=block.seed,
            process=self.args.process_index,
            processes=self.args.world_size,
            **pool,
        )
        loader = self._loader(self.train_rows.dataset, batch_sampler=self.sampler)
        return _unshared(loader)  # the sampler has already dealt out the rows

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """Return batches from the longest to the shortest row."""
        return self.get_test_dataloader(self.eval_dataset if eval_dataset is None else eval_dataset)

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader[Any]:
        """Return batches from the longest to the shortest row."""
        assert isinstance(test_dataset, SortedByLength)
        loader = self._loader(test_dataset, batch_size=self.args.eval_batch_size)
        if self.args.world_size == 1:  # the accelerator would keep the loader and its rows alive
            return _unshared(loader, self.args.device)
        prepared: DataLoader[Any] = self.accelerator.prepare(loader)
        return prepared

    def prediction_step(
        self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any
    ) -> tuple[None, Tensor, None]:
        """Return the part of the model's outputs that the task keeps; the loss needs no more."""
        batch = prepare_inputs(self, inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            outputs = model(**self.task.scored_inputs(batch))
        return None, self._keep(outputs, batch).detach(), None

    def evaluation_loop(self, dataloader: DataLoader[Any], *args: Any, **kwargs: Any) -> Any:
        """Return outputs in the data set's order; during training, score them."""
        with in_evaluation(self):
            out = super().evaluation_loop(dataloader, *args, **kwargs)
        view = dataloader.dataset
        assert isinstance(view, SortedByLength)
        outputs = view.restore(out.predictions)
        if kwargs.get("metric_key_prefix") == "eval":
            predictions = self._completed(view.rows, outputs, [self.task.best])
            self.last = predictions if self.state.global_step >= self.state.max_steps else None
            scores = self.task.scores(predictions)
            out.metrics.update({f"eval_{name}": value for name, value in scores.items()})
        return EvalLoopOutput(outputs, None, out.metrics, out.num_samples)

    def predictions_of(self, rows: Encoded, metrics: Sequence[str]) -> Predictions:
        """Return the model's outputs on a split, and its texts if these metrics need texts."""
        out = self.predict(_adapted(self.task, rows))
        return self._completed(rows, out.predictions, metrics)

    def final_predictions(self, rows: Encoded, metrics: Sequence[str]) -> Predictions:
        """Return the finished model's outputs on a split, reusing the last evaluation if possible.

        The last evaluation is reused if it scored these rows. `fit` drops it if the model has since
        got other weights.
        """
        if self.last is None or self.last.rows is not rows:
            return self.predictions_of(rows, metrics)
        if self.last.texts is None and self.task.needs_texts(metrics):
            return self._completed(rows, self.last.outputs, metrics)
        return self.last

    def answers_of(self, rows: Encoded) -> Predictions:
        """Return the source of the model's answers: its outputs, or the texts that it writes."""
        if self.task.options.WRITES_ANSWERS:
            return Predictions(
                np.empty((len(rows.examples), 0)), None, rows, self.write(rows.examples)
            )
        outputs = self.predict(_adapted(self.task, rows)).predictions
        outputs = self.task.settled(rows, outputs, self.reader)
        found = self.task.found(rows, outputs, self.reader)
        return Predictions(outputs, None, rows, reference=self._reference(rows), found=found)

    def outputs_of(self, rows: Encoded, keep: OutputsToKeep) -> np.ndarray:
        """Return the parts of the model's outputs on rows that `keep` takes, (rows, ...)."""
        self._keep = keep
        try:
            outputs: np.ndarray = self.predict(SortedByLength(rows)).predictions
        finally:
            self._keep = self.task.outputs_to_keep
        return outputs

    def _outputs(self, rows: Encoded) -> np.ndarray:
        return self.outputs_of(rows, self.task.outputs_to_keep)

    def _bare_outputs(self, rows: Encoded) -> np.ndarray:
        """Return the outputs of the base model without its adapters."""
        with switched_off(adapted_layers(self.base.model)):
            return self._outputs(rows)

    def row_scores(self, rows: Encoded) -> RowScores:
        """Return the task's main metric for each row of a split; the same on all processes."""
        return self.task.row_scores(self.predictions_of(rows, [self.task.best]))

    def write(self, examples: Dataset) -> list[str] | None:
        """Return the text that the model writes for each row; the processes share the work."""
        model = self.accelerator.unwrap_model(self.model_wrapped)
        model.eval()  # training leaves dropout on, and only `predict` turns it off
        rank, world = self.args.process_index, self.args.world_size
        mine = examples.select(range(rank, len(examples), world))
        telling_rows = in_evaluation(self, writing=True)
        with telling_rows, torch.no_grad(), self.compute_loss_context_manager():
            texts = self.task.write(model, self.base.processor, mine)
        if world == 1 or texts is None:
            return texts
        parts: list[list[str]] = gather_object([texts])
        return [parts[i % world][i // world] for i in range(len(examples))]

    def _completed(self, rows: Encoded, outputs: np.ndarray, metrics: Sequence[str]) -> Predictions:
        texts = self.write(rows.examples) if self.task.needs_texts(metrics) else None
        outputs = self.task.settled(rows, outputs, self.reader)
        found = self.task.found(rows, outputs, self.reader)
        labels, reference = self.task.labels(rows), self._reference(rows)
        return Predictions(outputs, labels, rows, texts, reference, found)

    def _reference(self, rows: Encoded) -> np.ndarray | None:
        """Return the reference model's outputs on rows; None for tasks without a reference."""
        reference = self.task.reference
        return None if reference is None else reference.outputs(rows, self)

    def _loader(self, dataset: Any, **options: Any) -> DataLoader[Any]:
        return DataLoader(
            dataset,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            worker_init_fn=leave_signals_to_parent,
            multiprocessing_context=worker_context(self.args.dataloader_num_workers),
            **options,
        )


def _adapted(task: Task, rows: Encoded) -> SortedByLength:
    return SortedByLength(rows, task.adapted_rows(rows))


def worker_context(workers: int) -> BaseContext | None:
    """Return the multiprocessing context for DataLoader workers; None: the default.

    A forked worker runs for a moment before it calls `leave_signals_to_parent`. A signal to the
    whole process group would end the worker in that moment, and with it the run.
    """
    if not workers or multiprocessing.get_start_method() != "fork":
        return None
    return _HeldContext()


class _HeldProcess(multiprocessing.context.ForkProcess):
    def start(self) -> None:
        with held():
            super().start()


class _HeldContext(multiprocessing.context.ForkContext):
    Process = _HeldProcess


def _unshared(loader: DataLoader[Any], device: torch.device | None = None) -> DataLoader[Any]:
    """Prepare batches that are not shared with other processes.

    Args:
        device: where to put them; None: they stay in the CPU's memory.
    """
    options = {"put_on_device": device is not None, "num_processes": 1, "process_index": 0}
    prepared: DataLoader[Any] = prepare_data_loader(loader, device, **options)
    return prepared


def build_trainer(
    recipe: Recipe,
    task: Task,
    base: Base,
    output: Path | None = None,
    *,
    train: Encoded | None = None,
    select: Encoded | None = None,
) -> AdapterTrainer:
    """Build a trainer for a recipe; without training rows it can only evaluate.

    Args:
        output: directory of the run; None: nothing will be written.
    """
    if output is None:
        with tempfile.TemporaryDirectory() as made:  # Trainer makes its directory in any case
            return build_trainer(recipe, task, base, Path(made), train=train, select=select)
    if not is_accelerated():
        keep_freed_memory()
    recipe = _scoring(recipe) if train is None else recipe
    if train is not None:
        _unprepare(base.model)
    less = FEWER_BITS if train is None else SMALLER_MODEL  # a finished adapter keeps its model
    with telling(lambda: "moving the model to the device", hint=less):
        return AdapterTrainer(
            task=task,
            recipe=recipe,
            train=train,
            base=base,
            args=training_arguments(recipe, output, task.best, evaluates=select is not None),
            eval_dataset=None if select is None else _adapted(task, select),
            data_collator=task.collator(base.processor),
            callbacks=split_loggers(recipe.training.loggers)[1],
        )


def _unprepare(model: nn.Module) -> None:
    """Undo accelerate's preparation of a model, so that training prepares it anew.

    Accelerate prepares a model only once. If that was for scoring, training would not average the
    gradients over the processes, and each process would train an adapter of its own.
    """
    vars(model).pop("_is_accelerate_prepared", None)
    forward = vars(model).pop("_original_forward", None)  # without autocast
    if forward is not None:
        model.forward = forward


def _scoring(recipe: Recipe) -> Recipe:
    """Drop training settings that scoring does not need: loggers, a rate, batches that split."""
    only = {"loggers": [], "batch_size": _world_size(), "gradient_accumulation": 1}
    only |= {"learning_rate": 1.0}  # no step is taken, and `auto` may not be settled here
    return recipe.model_copy(update={"training": recipe.training.model_copy(update=only)})


def build_scorer(recipe: Recipe, task: Task, base: Base) -> AdapterTrainer:
    """Build a trainer that only scores, without a progress bar for each pass."""
    trainer = build_trainer(recipe, task, base)
    trainer.remove_callback(ProgressCallback)
    return trainer


def training_arguments(
    recipe: Recipe, output: Path, metric: str, *, evaluates: bool
) -> TrainingArguments:
    """Convert the recipe's training block to transformers' arguments."""
    block = recipe.training
    evaluate, eval_steps = _cadence(block.evaluate if evaluates else "no")
    check_machine(block)
    world = _world_size()
    parts = block.gradient_accumulation * world
    if block.batch_size % parts:
        raise SoraError(
            f"training.batch_size {block.batch_size} cannot be split over {world} processes x "
            f"{block.gradient_accumulation} micro-batches",
            hint=f"training.batch_size={math.ceil(block.batch_size / parts) * parts}",
        )
    arguments = TrainingArguments(
        output_dir=str(output),
        num_train_epochs=block.epochs,
        max_steps=block.max_steps or -1,
        per_device_train_batch_size=block.batch_size // parts,
        per_device_eval_batch_size=block.eval_batch_size,
        gradient_accumulation_steps=block.gradient_accumulation,
        learning_rate=block.rate,
        lr_scheduler_type=block.schedule,
        warmup_steps=block.warmup,
        weight_decay=block.weight_decay,
        adam_beta1=block.adam_betas[0],
        adam_beta2=block.adam_betas[1],
        adam_epsilon=block.adam_epsilon,
        max_grad_norm=block.max_grad_norm,
        seed=block.seed,
        eval_strategy=evaluate,
        eval_steps=eval_steps,
        save_strategy="no",  # our own checkpoints: safetensors and JSON only
        metric_for_best_model=metric,
        greater_is_better=recipe.task.options.greater_is_better,
        logging_steps=block.logging_steps,
        report_to=split_loggers(block.loggers)[0] or "none",
        project="sora",
        run_name=output.name,
        dataloader_num_workers=block.workers,
        dataloader_pin_memory=is_cuda(),
        remove_unused_columns=False,
        use_cpu=not is_accelerated(),
        disable_tqdm=False,
        logging_nan_inf_filter=False,
        **switches.arguments(recipe),
    )
    use_one_gpu(arguments)
    return arguments


def _cadence(cadence: Cadence) -> tuple[str, int | None]:
    return ("steps", cadence) if isinstance(cadence, int) else (cadence, None)


def _world_size() -> int:
    return int(process_state().num_processes)
