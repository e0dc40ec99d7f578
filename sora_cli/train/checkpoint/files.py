"""Checkpoints as files: safetensors and JSON only; incomplete checkpoints are skipped.

    checkpoints/step-000120/
        state.safetensors     trained parameters, the method's state, optimiser moments, generators
        trainer_state.json    transformers' own: step, epoch, history
        run.json              recipe, optimiser options, schedule, counts of the callbacks
        complete.json         the mark, written last: size and sha256 of the others

A directory is written under a temporary name, read back, and renamed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from transformers import TrainerState

from methods.base import AdapterMethod
from methods.sharding import like, whole
from sora_cli.core.atomic import new_directory, write_text_atomic
from sora_cli.core.errors import SoraError, first_line
from sora_cli.model.tensors import load_tensors
from sora_cli.train.checkpoint.places import (
    MARK_FILE,
    RUN_FILE,
    STATE_FILE,
    TRAINER_FILE,
    checkpoint_paths,
)

_FILES = (STATE_FILE, TRAINER_FILE, RUN_FILE)


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint, read into memory.

    Attributes:
        tensors: "model.*", "method.*", "optimizer.*" and "random.*".
        run: the content of run.json.
    """

    path: Path
    tensors: Mapping[str, Tensor]
    run: Mapping[str, Any]

    @property
    def step(self) -> int:
        """Number of optimiser steps taken."""
        return int(self.run["step"])

    @property
    def finished(self) -> bool:
        """True if training had ended."""
        return bool(self.run["finished"])


def write_checkpoint(
    path: Path, tensors: Mapping[str, Tensor], run: Mapping[str, Any], trainer: TrainerState
) -> None:
    """Write a checkpoint and read it back; an existing one is replaced.

    Parameters that are not finite are refused, and so is a checkpoint that reads back differently.
    """
    for name, tensor in tensors.items():
        if name.startswith("model.") and not bool(tensor.isfinite().all()):
            raise SoraError(
                f"no checkpoint of step {run['step']}: '{name.removeprefix('model.')}' holds NaN "
                "or infinite numbers"
            )
    try:
        with new_directory(path, force=True, markers=(MARK_FILE, RUN_FILE)) as folder:
            save_file(dict(tensors), folder / STATE_FILE)
            trainer.save_to_json(str(folder / TRAINER_FILE))
            write_text_atomic(folder / RUN_FILE, json.dumps(run, indent=1))
            # last: a checkpoint without its mark was interrupted, and is skipped
            marks = {name: _mark(folder / name) for name in _FILES}
            write_text_atomic(folder / MARK_FILE, json.dumps(marks, indent=1))
            _check(tensors, read_checkpoint(folder).tensors, path)
    except (OSError, SafetensorError) as error:
        raise SoraError(f"{path} cannot be written: {first_line(error)}") from error


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a complete checkpoint."""
    check_complete(path)
    run = json.loads((path / RUN_FILE).read_text(encoding="utf-8"))
    return Checkpoint(path, load_tensors(path / STATE_FILE), run)


def check_complete(path: Path) -> None:
    """Check that a checkpoint has all its files, with the recorded sizes and digests."""
    try:
        marks = json.loads((path / MARK_FILE).read_text(encoding="utf-8"))
    except OSError as error:
        raise SoraError(f"{path} is not complete: it has no {MARK_FILE}") from error
    except ValueError as error:
        raise SoraError(f"{path}/{MARK_FILE} is damaged: {first_line(error)}") from error
    try:
        for name in _FILES:
            if marks.get(name) != _mark(path / name):
                raise SoraError(f"{path}/{name} is not as it was written")
    except OSError as error:
        raise SoraError(f"{path} is not complete: {first_line(error)}") from error


def newest_checkpoint(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """Find the latest complete checkpoint of a run.

    The checkpoint that it names as the best must be complete, too.

    Returns:
        The checkpoint or None, and the problems of later checkpoints, which were skipped.
    """
    skipped: list[str] = []
    for path in reversed(checkpoint_paths(folder)):
        try:
            checkpoint = read_checkpoint(path)
            best = checkpoint.run["best_checkpoint"]
            if best is not None and folder / best != path:
                check_complete(folder / best)
            return checkpoint, skipped
        except SoraError as error:
            skipped.append(error.what)
    return None, skipped


def trained_tensors(model: torch.nn.Module, method: AdapterMethod) -> dict[str, Tensor]:
    """Copy the trained parameters ("model.*") and the method's state ("method.*")."""
    tensors = {f"method.{n}": cpu_copy(t) for n, t in method.state_dict().items()}
    trained = {f"model.{n}": cpu_copy(p) for n, p in model.named_parameters() if p.requires_grad}
    return {**trained, **tensors}


def load_trained(
    model: torch.nn.Module, method: AdapterMethod, tensors: Mapping[str, Tensor]
) -> None:
    """Load the result of `trained_tensors` into a model and its method.

    Factors take the stored rank, from which compaction may have changed theirs.
    """
    load_parameters(model, tensors)
    method.load_state_dict(with_prefix(tensors, "method."))


def load_parameters(model: torch.nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load only the trained parameters into a model."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in with_prefix(tensors, "model.").items():
            parameter = parameters[name]
            if parameter.shape == tensor.shape:
                parameter.copy_(like(tensor, parameter))
            else:
                # a copy: rounding of products depends on memory alignment, arbitrary in a file
                parameter.data = tensor.to(parameter, copy=True)


def with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin with a prefix, renamed without the prefix."""
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def cpu_copy(tensor: Tensor) -> Tensor:
    """Return a whole (unsharded) copy on the CPU; every process must call this."""
    return whole(tensor.detach()).cpu().contiguous().clone()


def _mark(file: Path) -> dict[str, Any]:
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"bytes": file.stat().st_size, "sha256": digest}


def _check(meant: Mapping[str, Tensor], back: Mapping[str, Tensor], path: Path) -> None:
    """Compare the written tensors with the tensors read back."""
    if back.keys() != meant.keys() or not all(_same(back[n], meant[n]) for n in back):
        raise SoraError(f"{path} reads back differently: check the disk")


def _same(back: Tensor, meant: Tensor) -> bool:
    if back.dtype != meant.dtype or back.shape != meant.shape:
        return False
    bits = (t.reshape(-1).view(torch.uint8) for t in (back, meant))  # as bits, NaN equals NaN
    return torch.equal(*bits)
