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
from sora_cli.recipe.families import NAMED, options_class, task_names
from sora_cli.recipe.output import OutputBlock
from sora_cli.recipe.schedule import PathBlock
from sora_cli.recipe.start import StartBlock
from sora_cli.recipe.task_options import BASE_MODEL, TaskOptions
from sora_cli.recipe.types import (
    Attention,
    Block,
    Checkpointing,
    Compile,
    Corpus,
    Count,
    Kernels,
    Loss,
    Moment,
    Names,
    Offload,
    Optimizer,
    Precision,
    RareClasses,
    Rate,
    Repeats,
    Seed,
    SomeNames,
    Text,
)

Cadence = Literal["epoch", "no"] | Count
"""Each epoch, never, or a number of optimiser steps."""


class ModelBlock(Block):
    """The frozen base model."""

    path: str = Field(
        description="Hub id, directory, package://PACKAGE/FOLDER (a folder of an installed Python "
        "package), or .gguf file"
    )
    revision: str | None = Field(None, description="branch, tag or commit on the Hub")
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = Field(
        "float32", description="number format of the frozen weights; auto: as in the checkpoint"
    )
    trust_remote_code: bool = Field(
        False, description="run the Python code that comes with the model"
    )
    attention: Attention = None
    quantise: Literal["4bit", "8bit"] | None = Field(
        None,
        description="load the frozen weights of linear layers in 4 or 8 bits: 4bit is NF4 with "
        "double quantisation, 8bit is LLM.int8(). Needs the extra [quant]",
    )
    new_tokens: Names = Field(
        [],
        description="tokens to add to the tokenizer, such as ['<tool>', '</tool>']: never split, "
        "and trained with the adapter, at the head's learning rate and without weight decay, as "
        "rows of the embedding and of the output layer",
    )

    @model_validator(mode="after")
    def _new(self) -> ModelBlock:
        for name in self.new_tokens:
            if not name.strip():
                raise ValueError(f"new_tokens: {name!r} is blank")
            if self.new_tokens.count(name) > 1:
                raise ValueError(f"'{name}' occurs twice in new_tokens")
        return self


class _NamedBlock(BaseModel):
    """A block with a name and that name's options; a typed object of them is built once."""

    model_config = ConfigDict(extra="allow", frozen=True)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Build a new block: pydantic's copy would keep the options object of the old block."""
        del deep  # the new block is built from plain data, so that nothing is shared
        return type(self)(**{**self.model_dump(), **(update or {})})


class TaskBlock(_NamedBlock):
    """The task to learn: `name` is a task family; the other keys are its options."""

    name: str = Field(description=f"task family: {NAMED}")

    @cached_property
    def options(self) -> TaskOptions:
        """The task's options as a validated object of the family's options class."""
        return options_class(self.name)(**(self.model_extra or {}))


class MethodBlock(_NamedBlock):
    """The training method: `name` is a method; the other keys are its options."""

    name: str = Field(
        description=f"{', '.join(builtin_names())} (described by: sora methods), or a method of a "
        "--code file"
    )

    @cached_property
    def config(self) -> MethodOptions:
        """The method's options as a validated object of its configuration class."""
        return config_class(self.name)(**(self.model_extra or {}))


class DataBlock(Block):
    """The rows: their source, splits and columns."""

    path: Text = Field(
        description="Hub id, local data-set directory, or builtin://NAME; leave it out if files "
        "are given",
        default="",
    )
    name: str | None = Field(None, description="configuration of the data set, such as rte")
    revision: str | None = Field(
        None, description="branch, tag or commit of the data set on the Hub"
    )
    files: dict[str, Names] | None = Field(
        None,
        description="csv, tsv, json, jsonl or parquet files of each split: {train: a.csv, "
        "validation: b.csv}",
    )
    train: str = Field("train", description="training split")
    validation: SomeNames = Field(
        ["validation"],
        description="validation splits, which are scored; the first one chooses the checkpoint",
    )
    text_columns: Names | None = Field(
        None,
        description="one column, or two for pairs of texts. A text with columns in braces joins "
        "columns: ['{word}: {sentence1}', '{sentence2}']. Default: columns with the usual names",
    )
    label_column: str = Field("label", description="column of the labels")
    columns: dict[str, str] = Field(
        {},
        description="columns of the parts of a row, if they do not have the usual names: "
        "{instruction: ask, output: reply}. The parts depend on task.name",
    )
    label_names: Annotated[list[str], Field(min_length=2)] | None = Field(
        None,
        description="names of the classes, in the order of the labels. Default: the names in the "
        "data set",
    )
    rare_classes: RareClasses = None
    max_length: int = Field(
        128,
        ge=2,
        le=2**24,
        description="largest number of tokens in an input; longer inputs are cut",
    )
    max_train_rows: Count | None = Field(
        None, description="largest number of training rows to use. Default: all"
    )
    max_validation_rows: Count | None = Field(
        None, description="largest number of rows to use of each validation split. Default: all"
    )
    selection: Literal["validation", "half-validation", "train-rows"] = Field(
        "validation",
        description="rows that choose the checkpoint. validation: the validation split itself, so "
        "that the reported score is the best of several. half-validation: a random half of it; the "
        "other half is reported. train-rows: rows held out of the training split; the whole "
        "validation split is reported",
    )
    selection_rows: Count = Field(
        1000, description="number of rows to hold out with selection: train-rows"
    )
    selection_seed: Seed = Field(42, description="seed of the split for data.selection")
    repeats: Repeats = "together"
    held_out_rows: Count | None = Field(
        None,
        description="number of training rows that become a validation split and are not trained "
        "on. The split gets the first name in data.validation, which the data set must not have",
    )
    held_out_seed: Seed = Field(42, description="seed of the split for data.held_out_rows")
    corpus: Corpus = None

    @model_validator(mode="after")
    def _distinct(self) -> DataBlock:
        names = self.label_names or []  # a name's position is its label: twice is ambiguous
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"'{name}' occurs twice in label_names")
        return self

    def whole(self) -> DataBlock:
        """Return a copy that trains on all rows: none is held out of the training split."""
        return self.model_copy(update={"selection": "validation"})

    def holding_out(self, rows: int, seed: int) -> DataBlock:
        """Return a copy that holds rows out of the training split."""
        update = {"selection": "train-rows", "selection_rows": rows, "selection_seed": seed}
        return self.model_copy(update=update)


class TrainingBlock(Block):
    """The optimisation: steps, learning rate, precision, checkpoints."""

    epochs: float = Field(3.0, gt=0, le=1e6, description="passes over the training rows")
    max_steps: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = Field(
        None, description="number of optimiser steps, instead of epochs; 0 only with start.adapter"
    )
    batch_size: Count = Field(
        32, description="rows per optimiser step, over all processes and micro-batches"
    )
    gradient_accumulation: Count = Field(
        1, description="number of micro-batches into which the rows of a step are divided"
    )
    micro_batch: Literal["auto"] | None = Field(
        None,
        description="auto: take the largest micro-batch that fits into memory (predicted, then "
        "tried once) and set gradient_accumulation to match. The gradients are the same up to "
        "rounding",
    )
    eval_batch_size: Count = Field(64, description="rows per evaluation batch and process")
    learning_rate: Rate = Field(
        8e-4,
        description="peak learning rate of factors and head; auto: found when the run starts, and "
        "kept when it is resumed",
    )
    head_learning_rate: float | None = Field(
        None, gt=0, description="peak learning rate of the head. Default: learning_rate"
    )
    schedule: Literal["linear", "cosine", "constant", "constant_with_warmup", "polynomial"] = Field(
        "linear", description="schedule of the learning rate"
    )
    warmup: float = Field(
        0.06,
        ge=0,
        description="length of the warm-up: a number of steps, or below 1 a share of all steps",
    )
    weight_decay: float = Field(0.1, ge=0, description="decoupled weight decay; gates have none")
    optimizer: Optimizer = Field(
        "adamw",
        description="adamw: torch's fused AdamW. adamw_unfused: AdamW as separate tensor "
        "operations. adamw_8bit: moments in 8 bits. paged_adamw_8bit: moments in 8 bits that move "
        "to main memory if GPU memory is full. The last two need the extra [quant]",
    )
    adam_betas: Betas = Field((0.9, 0.999), description="betas of AdamW")
    adam_epsilon: float = Field(1e-8, gt=0, description="epsilon of AdamW")
    max_grad_norm: float = Field(
        1.0,
        ge=0,
        description="largest gradient norm over all trained parameters; larger gradients are "
        "scaled down. 0: no limit",
    )
    non_finite: Literal["stop", "skip"] = Field(
        "stop",
        description="reaction to a loss or gradient that is NaN or infinite. stop: end the run and "
        "name the place. skip: leave the step out and count it; 10 in a row end the run",
    )
    precision: Precision = "fp32"
    gradient_checkpointing: Checkpointing = False
    activation_offload: Offload = False
    loss: Loss = "auto"
    compile: Compile = False
    kernels: Kernels = None
    deterministic: bool = Field(
        False,
        description="on a GPU, use only deterministic algorithms: each run gives the same bits, "
        "but takes longer. An operation without such an algorithm is an error",
    )
    seed: Seed = Field(0, description="seed of factors, data order and dropout")
    train_head: bool = Field(
        True,
        description="train the head and all parameters that are missing in the base checkpoint",
    )
    model_dropout: float | None = Field(
        None, ge=0, lt=1, description="dropout of the base model. Default: as in its checkpoint"
    )
    length_grouping: bool = Field(
        True,
        description="put training rows of similar length into the same batch, which saves padding",
    )
    evaluate: Cadence = Field(
        "epoch",
        description="time of evaluations: epoch (after each one), no, or a number of steps between "
        "two",
    )
    checkpoint: Cadence = Field(
        "epoch",
        description="time of checkpoints: epoch (after each one), no, or a number of steps between "
        "two. The best and the last checkpoint are kept",
    )
    keep_checkpoints: list[Moment] = Field(
        [],
        description="additional checkpoints that are never deleted: numbers of steps, or below 1 "
        "shares of the run. Other runs may begin with them (start.checkpoint)",
    )
    keep_best: bool = Field(
        True, description="end with the best checkpoint instead of the last one"
    )
    early_stopping: Count | None = Field(
        None, description="stop after this many evaluations without a better metric. Default: never"
    )
    compact_every: Count | None = Field(
        None,
        description="after every interval of this many steps, remove the components that were dead "
        "in all of these steps: faster, but another algorithm, since a removed gate cannot come "
        "back",
    )
    compact_only_count: bool = Field(
        False,
        description="only count the components that compact_every would remove, and how many of "
        "them come back",
    )
    logging_steps: Count = Field(10, description="steps between two entries of the loss history")
    loggers: Names = Field(
        [],
        description="tensorboard, trackio, wandb or mlflow (each an extra: pip install "
        "'sora-cli[trackio]'), another integration of transformers, or the name of a callback "
        "in a --code file",
    )
    workers: int = Field(0, ge=0, le=1024, description="number of processes that prepare batches")

    def steps_per_epoch(self, rows: int) -> int:
        """Return the number of optimiser steps in one pass over `rows` training rows."""
        return max(-(-rows // self.batch_size), 1)

    def total_steps(self, rows: int) -> int:
        """Return the number of optimiser steps of the run on `rows` training rows."""
        if self.max_steps is not None:
            return self.max_steps
        return math.ceil(self.epochs * self.steps_per_epoch(rows))

    def kept_steps(self, total: int) -> frozenset[int]:
        """Return the steps of `keep_checkpoints` in a run of `total` steps."""
        return frozenset(steps_of(moment, total) for moment in self.keep_checkpoints)

    def choice(self, rule: str) -> str:
        """Return `rule` if the run chooses a checkpoint, else the sentence that it does not.

        Args:
            rule: the sentence that names the rows of the choice.
        """
        asked = self.evaluate != "no" and (self.keep_best or self.early_stopping is not None)
        return rule if asked else "no checkpoint is chosen: the last step's weights are scored"

    @property
    def rate(self) -> float:
        """The peak learning rate as a number; of `auto` there is none before it is settled."""
        assert self.learning_rate != "auto", "training.learning_rate: auto is not settled yet"
        return self.learning_rate

    def _next_batch_size(self) -> int:
        """Return the smallest multiple of `gradient_accumulation` from `batch_size` up."""
        return -(-self.batch_size // self.gradient_accumulation) * self.gradient_accumulation

    @model_validator(mode="after")
    def _consistent(self) -> TrainingBlock:
        if self.batch_size % self.gradient_accumulation:
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of gradient_accumulation "
                f"{self.gradient_accumulation}; the next multiple is {self._next_batch_size()}"
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
    """Results of a paper on this task, for `sora compare --paper`."""

    source: str = Field(description="authors, year, arXiv number and table")
    model: str = Field(description="base model of these values, as in model.path")
    metric: str = Field(description="metric of these values, as in task.metrics")
    values: dict[str, float] = Field(
        description="values by name of the method, in the metric's own unit (0.8777, not 87.77)"
    )


class ResourcesBlock(Block):
    """The run's share of the machine in `sora sweep`; `sora train` uses the whole machine."""

    cpus: Annotated[int, Field(ge=1, le=4096)] | None = Field(
        None,
        description="CPU threads. Default: the machine's threads, divided among the running runs",
    )
    gpus: float | None = Field(
        None,
        ge=0,
        le=64,
        description="number of GPUs; below 1: a share of one; 0: the run sees none. Default: 1 if "
        "the machine has any",
    )


class Recipe(Block):
    """One run. `method.config` and `task.options` hold the typed options of method and task."""

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

    @model_validator(mode="before")
    @classmethod
    def _name_reference(cls, values: Any) -> Any:
        """Replace `task.reference: start` by the adapter that this run starts from, or `base`.

        A recipe made from this one (a smaller size, its healing) starts elsewhere, and must keep
        the reference. For a fork it stays, and is refused before training: see preflight.
        """
        task, start = (values.get(key) if isinstance(values, Mapping) else None
                       for key in ("task", "start"))  # fmt: skip
        if not isinstance(task, Mapping) or task.get("name") not in task_names():
            return values
        field = options_class(str(task["name"])).model_fields.get("reference")
        if field is None or task.get("reference", field.default) != field.default:
            return values
        named = start.get("adapter") if isinstance(start, Mapping) else None
        forked = isinstance(start, Mapping) and start.get("checkpoint") is not None
        chosen = field.default if forked else named or BASE_MODEL
        return {**values, "task": {**task, "reference": chosen}}

    @model_validator(mode="after")
    def _has_something_to_do(self) -> Recipe:
        if self.training.max_steps == 0 and (self.start is None or self.start.adapter is None):
            raise ValueError("training.max_steps 0 trains nothing: it needs start.adapter")
        if self.start is not None and self.start.bits is not None and self.training.max_steps != 0:
            raise ValueError("start.bits needs training.max_steps: 0: training leaves the grid")
        return self

    def resolved(self) -> dict[str, Any]:
        """Return all values as plain data, with defaults and the options of method and task."""
        blocks: dict[str, Any] = self.model_dump(mode="json")
        method, task = self.method, self.task
        return {
            **blocks,
            "task": {"name": task.name, **task.options.model_dump(mode="json")},
            "method": {"name": method.name, **method.config.model_dump(mode="json")},
        }

    def to_score(self) -> Recipe:
        """Return the recipe without its start: scoring needs none, and it may be gone by now."""
        return self.model_copy(update={"start": None})

    def set_places(self, places: Mapping[str, str]) -> None:
        """Store the places of keys, for errors: "training.epochs" -> "rte.yaml:12"."""
        self._places = places

    def place(self, key: str) -> str | None:
        """Return the place of a key, else of the block around it; None: no file and no override."""
        parts = key.split(".")
        keys = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
        return next((self._places[key] for key in keys if key in self._places), None)

    @contextmanager
    def placing(self, default: str | None = None) -> Iterator[None]:
        """Add the file and line of the key to errors that arise in the block.

        Args:
            default: the key for errors that name none.
        """
        try:
            yield
        except SoraError as error:
            error.key = error.key or default
            error.placed(None if error.key is None else self.place(error.key))
            raise
        except MethodError as error:
            raise SoraError(str(error), where=self.place(default or "method")) from error
