"""The recipe of a run: a pydantic model per block; unknown keys are errors.

`recipe.load` reads files, `extends:` and overrides. This module imports neither torch nor
transformers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, model_validator

from methods.configs import Betas, MethodOptions
from methods.errors import MethodError
from methods.registry import builtin_names, config_class
from methods.schedules import steps_of
from sora_cli.core.errors import SoraError
from sora_cli.recipe.auto import AutoBlock
from sora_cli.recipe.families import TaskOptions, options_class, task_names
from sora_cli.recipe.output import OutputBlock
from sora_cli.recipe.schedule import PathBlock
from sora_cli.recipe.start import StartBlock
from sora_cli.recipe.types import (
    Attention,
    Block,
    Checkpointing,
    Compile,
    Count,
    Kernels,
    Loss,
    Moment,
    Names,
    Offload,
    Optimizer,
    Precision,
    Seed,
    SomeNames,
    Text,
)

Cadence = Literal["epoch", "no"] | Count
"""Each epoch, never, or every so many optimiser steps."""


class ModelBlock(Block):
    """The frozen base model."""

    path: str = Field(
        description="Hub id, directory, package://PACKAGE/FOLDER inside an installed Python "
        "package, or a .gguf file"
    )
    revision: str | None = Field(None, description="Hub branch, tag or commit")
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = Field(
        "float32", description="dtype the frozen weights are loaded in; auto: the checkpoint's own"
    )
    trust_remote_code: bool = Field(False, description="run code that comes with the model")
    attention: Attention = None
    trust_kernel: bool = Field(
        False, description="run the compiled code that attention names in the Hub"
    )
    quantise: Literal["4bit", "8bit"] | None = Field(
        None,
        description="pack the frozen weights of linear layers into so many bits as they are read: "
        "4bit is NF4 with double quantisation, 8bit LLM.int8(); needs the extra [quant]",
    )


class _NamedBlock(BaseModel):
    """A block of a name and that name's own options, whose class builds them once."""

    model_config = ConfigDict(extra="allow", frozen=True)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Make the block anew: pydantic's copy would keep the options that were built before."""
        del deep  # nothing is shared with the copy
        return type(self)(**{**self.model_dump(), **(update or {})})


class TaskBlock(_NamedBlock):
    """The task to learn and its scores: `name`, and the options of that task family."""

    name: str = Field(description=f"task family: {', '.join(task_names())}")

    @cached_property
    def options(self) -> TaskOptions:
        """The typed options, validated by the family's class."""
        return options_class(self.name)(**(self.model_extra or {}))


class MethodBlock(_NamedBlock):
    """`name` plus the options of that method's own configuration class."""

    name: str = Field(
        description=f"{', '.join(builtin_names())} (sora methods describes them), or a registered "
        "method"
    )

    @cached_property
    def config(self) -> MethodOptions:
        """The typed options, validated by the method's configuration class."""
        return config_class(self.name)(**(self.model_extra or {}))


class DataBlock(Block):
    """The rows: where they come from, and which columns count."""

    path: Text = Field(
        description="Hub id, local data-set directory, or builtin://NAME; unset if files are given",
        default="",
    )
    name: str | None = Field(None, description="configuration of the data set, such as rte")
    revision: str | None = Field(None, description="Hub branch, tag or commit of the data set")
    files: dict[str, Names] | None = Field(
        None,
        description="csv, tsv, json, jsonl, parquet files per split: {train: a.csv, validation: "
        "b.csv}",
    )
    train: str = Field("train", description="split to train on")
    validation: SomeNames = Field(
        ["validation"],
        description="splits to evaluate on; the first one chooses the checkpoint",
    )
    text_columns: Names | None = Field(
        None,
        description="one column, or two for sentence pairs; a text with columns in braces makes "
        "one of several: ['{word}: {sentence1}', '{sentence2}']; unset: found by their usual names",
    )
    label_column: str = Field("label", description="column of the labels")
    columns: dict[str, str] = Field(
        {},
        description="columns by the part they play, if they do not have a usual name: "
        "{instruction: ask, output: reply}; the parts depend on task.name",
    )
    label_names: Annotated[list[str], Field(min_length=2)] | None = Field(
        None, description="names of the classes in label order; unset: the data set's own"
    )
    max_length: int = Field(128, ge=2, le=2**24, description="tokens; longer inputs are cut")
    max_train_rows: Count | None = Field(None, description="use only so many training rows")
    max_validation_rows: Count | None = Field(
        None, description="use only so many rows of each validation split"
    )
    selection: Literal["validation", "half-validation", "train-rows", "half-train"] = Field(
        "validation",
        description="rows that choose the checkpoint: the validation split itself (then the "
        "reported score is the best of a choice); a random half of it, the other half being "
        "reported; or rows held out of the training split, the whole validation being reported; "
        "half-train: selection_rows are left out of the training split, one half of the others "
        "(`half`) is trained on, and the other half chooses",
    )
    selection_rows: Count = Field(
        1000, description="rows for selection: train-rows, and those that half-train leaves out"
    )
    selection_seed: Seed = Field(42, description="seed of the split by data.selection")
    half: Literal[1, 2] | None = Field(
        None, description="with selection: half-train, the half that is trained on"
    )
    held_out_rows: Count | None = Field(
        None,
        description="training rows that become the first of data.validation, a split that the data "
        "then must not have; they are not trained on",
    )
    held_out_seed: Seed = Field(42, description="seed of the split by data.held_out_rows")

    @model_validator(mode="after")
    def _distinct(self) -> DataBlock:
        names = self.label_names or []
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"'{name}' is there twice in label_names")
        if (self.half is None) == (self.selection == "half-train"):
            raise ValueError("half goes with selection half-train: half is 1 or 2")
        return self


class TrainingBlock(Block):
    """The optimisation run."""

    epochs: float = Field(3.0, gt=0, le=1e6, description="passes over the training rows")
    max_steps: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = Field(
        None, description="optimiser steps; overrides epochs; 0 only with start.adapter"
    )
    batch_size: Count = Field(
        32, description="rows per optimiser step, over all processes and micro-batches"
    )
    gradient_accumulation: Count = Field(
        1, description="micro-batches that the rows of a step are split into"
    )
    micro_batch: Literal["auto"] | None = Field(
        None,
        description="auto: the largest micro-batches that fit into memory, predicted and then "
        "tried once; gradient_accumulation follows, and the gradients are the same up to rounding",
    )
    eval_batch_size: Count = Field(64, description="rows per evaluation batch and process")
    learning_rate: float = Field(8e-4, gt=0, description="peak learning rate of factors and head")
    head_learning_rate: float | None = Field(
        None, gt=0, description="peak learning rate of the head; unset: learning_rate"
    )
    schedule: Literal["linear", "cosine", "constant", "constant_with_warmup", "polynomial"] = Field(
        "linear", description="learning-rate schedule"
    )
    warmup: float = Field(
        0.06, ge=0, description="warm-up: a share of all steps if below 1, else steps"
    )
    weight_decay: float = Field(0.1, ge=0, description="decoupled weight decay (gates: none)")
    optimizer: Optimizer = Field(
        "adamw",
        description="adamw: torch's fused kernel; adamw_unfused: one tensor operation after "
        "another; adamw_8bit: moments in 8 bits; paged_adamw_8bit: these move to the machine's "
        "memory where a GPU's is full; the last two need the extra [quant]",
    )
    adam_betas: Betas = Field((0.9, 0.999), description="AdamW betas")
    adam_epsilon: float = Field(1e-8, gt=0, description="AdamW epsilon")
    max_grad_norm: float = Field(
        1.0, ge=0, description="gradient norm clip over all trained parameters; 0: none"
    )
    non_finite: Literal["stop", "skip"] = Field(
        "stop",
        description="at a loss or gradient that is NaN or infinite: stop the run and say where it "
        "arose, or skip: leave that step out and count it (10 in a row stop the run)",
    )
    precision: Precision = "fp32"
    gradient_checkpointing: Checkpointing = False
    activation_offload: Offload = False
    loss: Loss = "auto"
    compile: Compile = False
    kernels: Kernels = None
    deterministic: bool = Field(
        False,
        description="on a GPU, the same bits each time: deterministic algorithms only, which are "
        "slower; an operation that has none is an error",
    )
    seed: Seed = Field(0, description="seed of factors, data order and dropout")
    train_head: bool = Field(
        True, description="train the head and whatever the base checkpoint did not supply"
    )
    model_dropout: float | None = Field(
        None, ge=0, lt=1, description="set the base model's own dropout; unset: the checkpoint's"
    )
    length_grouping: bool = Field(
        True, description="batches of similar length; no effect on scores"
    )
    evaluate: Cadence = Field("epoch", description="epoch, no, or every so many steps")
    checkpoint: Cadence = Field(
        "epoch", description="epoch, no, or every so many steps; the best and the last are kept"
    )
    keep_checkpoints: list[Moment] = Field(
        [],
        description="steps, or shares of the run below 1, whose checkpoints are written besides "
        "and stay: other runs may begin there (start.checkpoint)",
    )
    keep_best: bool = Field(True, description="end with the best checkpoint, not the last one")
    early_stopping: Count | None = Field(
        None, description="evaluations without a better metric before stopping"
    )
    compact_every: Count | None = Field(
        None,
        description="remove components, every so many steps, that were dead in all of them: "
        "faster, but another algorithm, since a removed gate cannot come back",
    )
    compact_only_count: bool = Field(
        False, description="only count what compact_every would remove, and what of it comes back"
    )
    logging_steps: Count = Field(10, description="steps between two entries of the loss history")
    loggers: Names = Field(
        [],
        description="tensorboard, trackio, wandb, mlflow (each an extra: "
        "pip install 'sora-cli[trackio]'), another of transformers' integrations, or the name of a "
        "callback from a file of --code",
    )
    workers: int = Field(0, ge=0, le=1024, description="processes that prepare batches")

    def steps_per_epoch(self, rows: int) -> int:
        """Return the optimiser steps of one pass over so many training rows."""
        return max(-(-rows // self.batch_size), 1)

    def total_steps(self, rows: int) -> int:
        """Return the optimiser steps of the run on so many training rows."""
        if self.max_steps is not None:
            return self.max_steps
        return math.ceil(self.epochs * self.steps_per_epoch(rows))

    def kept_steps(self, total: int) -> frozenset[int]:
        """Return the steps of `keep_checkpoints` in a run of so many steps."""
        return frozenset(steps_of(moment, total) for moment in self.keep_checkpoints)

    def choice(self, rule: str) -> str:
        """Say how the checkpoint is chosen; `rule` says on which rows, if there is a choice."""
        asked = self.evaluate != "no" and (self.keep_best or self.early_stopping is not None)
        return rule if asked else "no checkpoint is chosen: the last step's weights are scored"

    def _next_batch_size(self) -> int:
        """Return the smallest size from `batch_size` up that splits into micro-batches."""
        return -(-self.batch_size // self.gradient_accumulation) * self.gradient_accumulation

    @model_validator(mode="after")
    def _consistent(self) -> TrainingBlock:
        if self.batch_size % self.gradient_accumulation:
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of gradient_accumulation "
                f"{self.gradient_accumulation}; the next is {self._next_batch_size()}"
            )
        if self.micro_batch is not None and self.gradient_accumulation > 1:
            raise ValueError(
                "micro_batch auto chooses gradient_accumulation: leave one of them out"
            )
        if self.early_stopping and self.evaluate == "no":
            raise ValueError("early_stopping needs evaluations; evaluate is 'no'")
        if self.compact_only_count and self.compact_every is None:
            raise ValueError("compact_only_count needs compact_every")
        return self


class PaperBlock(Block):
    """Values that a paper prints for this task, for `sora compare --paper`."""

    source: str = Field(description="authors, year, arXiv number, table")
    model: str = Field(description="base model the values hold for, as in model.path")
    metric: str = Field(description="the metric, as in task.metrics")
    values: dict[str, float] = Field(
        description="by method's name, in the metric's own unit (0.8777, not 87.77)"
    )


class ResourcesBlock(Block):
    """The share of the machine that `sora sweep` gives the run; `sora train` takes all there is."""

    cpus: Annotated[int, Field(ge=1, le=4096)] | None = Field(
        None, description="threads; unset: the machine's, divided among the runs at work"
    )
    gpus: float | None = Field(
        None, ge=0, le=64, description="GPUs; below 1: a share of one. Unset: one, if there are any"
    )


class Recipe(Block):
    """One run. `method` and `task` hold a name; the typed options are `.config` and `.options`."""

    model: ModelBlock
    task: TaskBlock
    data: DataBlock
    method: MethodBlock
    training: TrainingBlock = TrainingBlock.model_validate({})
    start: StartBlock | None = None
    path: PathBlock | None = None
    auto: AutoBlock | None = None
    paper: PaperBlock | None = None
    resources: ResourcesBlock = ResourcesBlock.model_validate({})
    output: OutputBlock = OutputBlock.model_validate({})
    _places: Mapping[str, str] = PrivateAttr(default_factory=dict)

    @model_validator(mode="after")
    def _has_something_to_do(self) -> Recipe:
        if self.training.max_steps == 0 and (self.start is None or self.start.adapter is None):
            raise ValueError("training.max_steps 0 trains nothing: it needs start.adapter")
        return self

    def resolved(self) -> dict[str, Any]:
        """Return every value as plain data, with defaults and the method's own options."""
        blocks: dict[str, Any] = self.model_dump(mode="json")
        method, task = self.method, self.task
        return {
            **blocks,
            "task": {"name": task.name, **task.options.model_dump(mode="json")},
            "method": {"name": method.name, **method.config.model_dump(mode="json")},
        }

    def set_places(self, places: Mapping[str, str]) -> None:
        """Store where keys were set, which is no value: "training.epochs" -> "rte.yaml:12"."""
        self._places = places

    def place(self, key: str) -> str | None:
        """Return where a key was set, else where the block around it starts; None: in no file."""
        parts = key.split(".")
        keys = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
        return next((self._places[key] for key in keys if key in self._places), None)

    @contextmanager
    def placing(self, default: str | None = None) -> Iterator[None]:
        """Make errors about a key of this recipe say where it was set.

        Args:
            default: the key that errors are about which name none.
        """
        try:
            yield
        except SoraError as error:
            error.key = error.key or default
            error.placed(None if error.key is None else self.place(error.key))
            raise
        except MethodError as error:
            raise SoraError(str(error), where=self.place(default or "method")) from error
