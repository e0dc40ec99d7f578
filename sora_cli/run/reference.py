"""The reference model of preference tuning: its outputs on rows, computed once and kept.

The reference is the base model, or the base model with an adapter: the one that the run starts
from. No second model is loaded: the run's own adapters are switched off, and the reference's update
is added for the passes. A training computes its rows before the first step and keeps them in the
run's `reference.safetensors`; a resumed training reads them there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from weakref import finalize

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from methods.inject import adapted_layers, switched_off
from sora_cli.adapter.apply import added
from sora_cli.adapter.digest import result_digest
from sora_cli.adapter.places import locate_adapter
from sora_cli.adapter.reading import read_adapter
from sora_cli.core.atomic import write_bytes_atomic
from sora_cli.core.console import say_notes
from sora_cli.core.errors import SoraError, first_line
from sora_cli.core.processes import is_main
from sora_cli.core.shell import quote
from sora_cli.core.words import listed
from sora_cli.data.content import data_fingerprint
from sora_cli.model.base import Base, load_base
from sora_cli.recipe.recipe import DataBlock, Recipe
from sora_cli.recipe.task_options import BASE_MODEL
from sora_cli.run.output import REFERENCE
from sora_cli.run.stored import check_base
from sora_cli.tasks import create_task
from sora_cli.tasks.answer_rows import INPUTS
from sora_cli.tasks.base import Task
from sora_cli.tasks.encoded import Encoded
from sora_cli.tasks.family.head import ReferenceModel
from sora_cli.train.trainer import AdapterTrainer, build_scorer

KEY = "task.reference"
_HINT = "restore it, or name where it is now: task.reference=DIR"


class Reference(ReferenceModel):
    """The reference model of a recipe.

    Attributes:
        adapter: its adapter directory; None: the base model alone.
        digest: of the adapter's files.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.name = recipe.task.options.reference  # type: ignore[attr-defined]
        self._recipe, self._known, self._noted = recipe, dict[int, np.ndarray](), False
        self.adapter = None if self.name == BASE_MODEL else Path(self.name).expanduser()
        self.digest = None if self.adapter is None else _digest(self.adapter)

    def check_same(self, digest: str | None, name: str) -> None:
        """Refuse a reference other than the one that a trained adapter was compared with.

        Args:
            digest: as recorded with that adapter; None: the base model, or not known.
            name: of that reference at that time; for other tools' adapters it is not known.
        """
        if digest != self.digest and (digest is not None or name == BASE_MODEL):
            other = f"name it: {KEY}={quote(name)}" if name != self.name else _HINT
            raise SoraError(
                f"the reference '{self.name}' is not the one that this adapter was trained against",
                hint=other,
                key=KEY,
            )

    def outputs(self, rows: Encoded, trainer: AdapterTrainer) -> np.ndarray:
        """Return the log-probabilities on rows, computed at the first call for these rows."""
        if id(rows) not in self._known:
            self._keep(rows, self._compute(rows, trainer))
        return self._known[id(rows)]

    def _keep(self, rows: Encoded, values: np.ndarray) -> None:
        """Keep the outputs as long as the rows live: `sora predict` answers part after part."""
        self._known[id(rows)] = values
        finalize(rows, self._known.pop, id(rows), None)

    def hold(
        self, parts: Mapping[str, Encoded], trainer: AdapterTrainer, file: Path, *, stored: bool
    ) -> None:
        """Compute all rows of a training before its first step, or read them from its file.

        Args:
            parts: the rows by name.
            stored: a resumed training: read the file, and refuse it if anything changed.
        """
        made_with = {name: _fingerprint(rows) for name, rows in parts.items()}
        made_with[KEY] = self.digest or BASE_MODEL
        if stored and file.is_file():
            values = _read(file, made_with)
            for name, rows in parts.items():
                self._keep(rows, values[name])
            return
        values = {name: self.outputs(rows, trainer) for name, rows in parts.items()}
        trainer.unprepare()
        if is_main():
            file.parent.mkdir(parents=True, exist_ok=True)
            record = json.dumps([made_with, _content(values)])
            write_bytes_atomic(file, save(values, metadata={"record": record}))

    def _compute(self, rows: Encoded, trainer: AdapterTrainer) -> np.ndarray:
        layers = adapted_layers(trainer.model)
        if layers or trainer.is_untrained:
            with switched_off(layers), self._added(trainer.base):
                return _measured(rows, trainer)
        # the weights themselves may have changed: a merged model, or a baseline's result
        task, block = trainer.task, self._recipe.model
        base = load_base(block, task, precision=self._recipe.training.precision)
        with self._added(base):
            return _measured(rows, build_scorer(self._recipe, task, base))

    @contextmanager
    def _added(self, base: Base) -> Iterator[None]:
        """Add the reference's update to the base model inside the `with` block."""
        if self.adapter is None:
            yield
            return
        with self._recipe.placing(KEY):
            adapter = read_adapter(self.adapter, base=base.resolved)
            hint = "name a reference of this base model"
            notes = check_base(base, adapter.base, self.adapter, hint=hint)
            if not all(part.added_for_a_while for part in adapter.parts):
                raise SoraError(
                    f"the reference '{self.name}' stores parts in full, or rescales layers: it "
                    "cannot be added to the base model for a while",
                    hint="sora merge it, and train on the merged model: model.path=DIR",
                    key=KEY,
                )
        if not self._noted:  # not again for each part of the rows
            say_notes(notes)
        self._noted = True
        with added(base.model, adapter):
            yield


def referenced_task(recipe: Recipe, data: DataBlock | None = None) -> Task:
    """Create a recipe's task with its reference model, without which its answers are others.

    Args:
        data: in place of the recipe's data block.
    """
    task = create_task(recipe.task, data or recipe.data)
    if task.options.needs_reference:
        with recipe.placing(KEY):
            task.reference = Reference(recipe)
    return task


def hold_reference(
    trainer: AdapterTrainer, parts: Mapping[str, Encoded], output: Path, *, resumed: bool
) -> None:
    """Give a trainer the reference's outputs on its rows, before the first step.

    Args:
        parts: all rows of the run, by name; those to train on are "train".
        output: the run's directory.
        resumed: read the outputs that an earlier process stored there.
    """
    task = trainer.task
    if isinstance(task.reference, Reference):
        task.reference.hold(parts, trainer, output / REFERENCE, stored=resumed)
        train = task.with_reference(parts["train"], task.reference.outputs(parts["train"], trainer))
        trainer.train_rows = train
        trainer.train_dataset = train.dataset


def hold_documents(trainer: AdapterTrainer) -> None:
    """Give a trainer its documents' vectors before the first step, where the base makes them."""
    assert trainer.train_rows is not None
    train = trainer.task.with_documents(trainer.train_rows, trainer.reader)
    if train is not None:
        trainer.unprepare()
        trainer.train_rows, trainer.train_dataset = train, train.dataset


def _measured(rows: Encoded, trainer: AdapterTrainer) -> np.ndarray:
    return trainer.task.measured(trainer.outputs_of(rows, trainer.task.outputs_to_keep))


def _digest(folder: Path) -> str:
    try:
        digest = result_digest(locate_adapter(folder))
    except SoraError as error:
        raise SoraError(
            f"the reference '{folder}' holds no adapter", hint=_HINT, key=KEY
        ) from error
    if digest is None:
        raise SoraError(f"the reference '{folder}' cannot be read", hint=_HINT, key=KEY)
    return digest


def _fingerprint(rows: Encoded) -> str:
    return data_fingerprint(rows.dataset.select_columns(list(INPUTS)))


def _content(values: Mapping[str, np.ndarray]) -> str:
    """Return the SHA-256 of numbers: a resumed run with others would not be exact."""
    digest = hashlib.sha256()
    for name in sorted(values):
        digest.update(f"{name} {values[name].shape}".encode() + values[name].tobytes())
    return digest.hexdigest()


def _read(file: Path, made_with: Mapping[str, str]) -> dict[str, np.ndarray]:
    again = "start again with --force"
    try:
        with safe_open(file, "numpy") as stored:
            known, digest = json.loads(stored.metadata()["record"])
            values = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise SoraError(f"{file} cannot be read: {first_line(error)}", hint=again) from error
    if digest != _content(values):
        raise SoraError(f"{file} is damaged: its numbers changed", hint=again)
    changed = [name for name in made_with if known.get(name) != made_with[name]]
    if changed:
        what = "the reference model" if KEY in changed else f"the rows of {listed(changed)}"
        raise SoraError(f"{what} changed since this run began", where=str(file), hint=again)
    return values
