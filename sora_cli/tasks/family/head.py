"""The model's head: what goes into the model, what of its outputs is kept, and the loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, final

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn

from sora_cli.data.processor import set_padding
from sora_cli.tasks.encoded import Encoded
from sora_cli.tasks.family.bound import Bound

if TYPE_CHECKING:
    from sora_cli.tasks.corpus import Reader
    from sora_cli.tasks.learned import LearnedHead


def without(batch: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Return a batch without these inputs."""
    return {name: value for name, value in batch.items() if name not in names}


class ReferenceModel(ABC):
    """The model that a family's loss and scores compare the trained model with."""

    name: str
    """As in the recipe."""
    digest: str | None
    """Of its adapter's files; None: the base model alone."""

    @abstractmethod
    def outputs(self, rows: Encoded, trainer: Any) -> np.ndarray:
        """Return `Task.measured` of its outputs on rows, computed once.

        Args:
            trainer: of the model that is compared with it.
        """

    @abstractmethod
    def check_same(self, digest: str | None, name: str) -> None:
        """Refuse a reference other than the one that a trained adapter was compared with.

        Args:
            digest: as recorded with that adapter; None: the base model, or not known.
            name: of that reference at that time.
        """


class FamilyHead(Bound):
    """The model and its loss, as a family has them.

    A family with a loss of its own overrides `inputs_of`, so that the model computes no second
    loss, and `loss_of`. Training, trials and forecasts all come through `batch_loss`.
    """

    reference: ReferenceModel | None = None
    """For families that need one; set where the recipe is known."""
    learned: LearnedHead | None = None
    """The model's head at learned places, of families with `CHUNKS_LOSS`; set by `adapt_model`."""

    @classmethod
    def is_for(cls, config: Any) -> bool:
        """Return True if a model with this configuration may be of this family."""
        del config
        return True

    def model_options(self) -> dict[str, Any]:
        """Return configuration values of the head (num_labels, id2label, ...)."""
        return {}

    def adapt_model(self, model: nn.Module, processor: Any) -> None:
        """Adapt a loaded model and its processor to each other and to the task, in place.

        A model that cannot be used for the task is an error.
        """
        if self.options.PROCESSOR_CLASS == "AutoTokenizer":
            set_padding(model, processor)

    @abstractmethod
    def collator(self, processor: Any) -> Any:
        """Return the function that pads a list of rows into a batch."""

    def inputs_of(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the part of a batch that the model gets in training.

        A family with a loss of its own leaves the labels out, so that no second loss is computed.
        """
        return batch

    def loss_of(self, outputs: Any, batch: Mapping[str, Any]) -> Tensor:
        """Return the mean loss of a batch's `loss_items`, from the model's outputs on `inputs_of`.

        It may use outputs, batch and the family's own state, never the model's parameters.
        """
        loss: Tensor = outputs["loss"]
        return loss

    def loss_items(self, batch: Mapping[str, Any]) -> int:
        """Return the number of items that the model's loss averages over in this batch."""
        return len(batch["labels"])

    def before_step(
        self, model: nn.Module, micro_batches: Sequence[Mapping[str, Any]]
    ) -> Sequence[Mapping[str, Any]]:
        """Return a step's micro-batches with what a loss over the whole step needs besides.

        Called before the passes of a step by families whose loss compares the rows of a step
        (`LOSS_COMPARES`): without gradients, on the model in training mode, in every process with
        its own micro-batches, which may be none. A family that runs the model runs each micro-batch
        once, in this order: the step's passes then drop the same numbers.
        """
        return micro_batches

    def batch_loss(self, model: nn.Module, batch: Mapping[str, Any]) -> tuple[Tensor, Any]:
        """Return a micro-batch's loss and the model's outputs, after `before_step`.

        A micro-batch that it has not seen only fills up a step of several processes: it has no
        weight, and any finite loss.
        """
        outputs = model(**self.inputs_of(batch))
        return self.loss_of(outputs, batch), outputs

    @final
    def step_loss(self, model: nn.Module, batch: Mapping[str, Any]) -> tuple[Tensor, Any]:
        """Return the loss of a step of one batch, and the outputs: for trials and forecasts."""
        with torch.no_grad():
            (whole,) = self.before_step(model, [batch])
        return self.batch_loss(model, whole)

    def scored_inputs(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the part of a batch that the model gets in scoring."""
        return batch

    def outputs_to_keep(self, outputs: Any, batch: Mapping[str, Any]) -> Tensor:
        """Return the part of the outputs that scores need, (rows, ...).

        Rows of other batches may be longer; shorter rows are then padded with -100.
        """
        kept: Tensor = outputs["logits"]
        return kept

    def measured(self, outputs: np.ndarray) -> np.ndarray:
        """Return the part of a reference model's kept outputs that is compared, float64."""
        return outputs

    def with_reference(self, rows: Encoded, reference: np.ndarray) -> Encoded:
        """Return training rows with the reference model's outputs."""
        del reference
        return rows

    def with_documents(self, rows: Encoded, reader: Reader) -> Encoded | None:
        """Return training rows whose documents the base model alone has read; None: it need not."""
        return None

    def write(self, model: Any, processor: Any, examples: Dataset) -> list[str] | None:
        """Generate a text for each example; None if the family generates no texts."""
        return None
