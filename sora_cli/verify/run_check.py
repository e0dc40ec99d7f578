"""The last step of a run: load its files and compare them with the trained model."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from methods.sharding import is_sharded
from sora_cli.adapter.places import baseline_folder
from sora_cli.core.console import say
from sora_cli.core.errors import SoraError
from sora_cli.core.exit_codes import FAILED, NO_VERDICT, OK
from sora_cli.core.shell import quote
from sora_cli.core.words import first_few
from sora_cli.model.attention import usual_attention
from sora_cli.recipe.load import LoadedRecipe
from sora_cli.recipe.recipe import Recipe
from sora_cli.report import FileFacts, RunReport
from sora_cli.run.prepare import Prepared
from sora_cli.run.stored import load_baseline
from sora_cli.verify.probes import ROWS
from sora_cli.verify.self_check import self_check, too_large

_SHARE, _LONGEST, _BRIEF = 0.1, 20.0, 3.0
"""A check is announced if it takes more than this share of its run or this many seconds, but never
if it takes less than `_BRIEF` seconds."""


def check_run(loaded: LoadedRecipe, ready: Prepared, report: RunReport) -> int:
    """Compare a run's files with the trained model, if that is possible here.

    Says one line on stderr: verified, not verified with the reason, or DIFFERENT; and one line
    before, if the check takes long.

    Args:
        report: has the run's duration; receives the result.

    Returns:
        Exit code: FAILED if they differ; OK also if nothing was compared.
    """
    recipe, output = loaded.recipe, loaded.output_dir
    if ready.baseline is not None:
        return _check_baseline(output, recipe, ready, report)
    if recipe.model.trust_remote_code:
        say(f"not verified: the model has code of its own; {_scored(output)}")
        return OK
    # this is one process of several: it cannot run a sharded model alone
    sharded = any(is_sharded(p) for p in ready.base.model.parameters())
    packed = recipe.model.quantise is not None  # the files are an adapter of the plain model
    # autocast stays wrapped around the trained model's forward
    fresh = recipe.training.precision != "fp32" or sharded or packed
    notice = announcement(report, recipe.training.batch_size, fresh=fresh)
    trained = None if fresh else ready.base.model

    def record(facts: dict[str, Any]) -> None:
        report.verification = FileFacts(**{k: v for k, v in facts.items() if k not in ("a", "b")})

    # the files are loaded with the implementation of attention that transformers chooses
    other = recipe.model.attention is not None and trained is not None
    with usual_attention(trained) if other else nullcontext():
        code = self_check(output, trained=trained, fresh=fresh, notice=notice, record=record)
    return OK if code == NO_VERDICT else code


def _scored(output: Path) -> str:
    return f"sora eval {quote(str(output))} --recipe RECIPE scores it again"


def announcement(report: RunReport, batch_size: int = 0, *, fresh: bool = False) -> str | None:
    """Return a notice for a check that takes long compared with its run; None for a short one.

    The expected time is that of loading the model once more, and of three forward passes of the
    inputs, each a third of a training step on as many rows.

    Args:
        batch_size: rows of a training step; 0: nothing is computed.
        fresh: the model is loaded twice, once in a new process.
    """
    spent = report.seconds
    steps = (report.steps or 0) - report.steps_before
    step = spent.get("train", 0.0) / max(steps, 1)
    expected = spent.get("load model", 0.0) + (step * ROWS / batch_size if batch_size else 0.0)
    if fresh:
        expected += spent.get("load model", 0.0) + spent.get("import", 0.0)
    if expected <= max(_BRIEF, min(_LONGEST, _SHARE * sum(spent.values()))):
        return None
    return f"checking the files takes about {expected:.0f} s; --no-verify skips it"


def _check_baseline(output: Path, recipe: Recipe, ready: Prepared, report: RunReport) -> int:
    """Compare every tensor of the reloaded model with the trained model's, to the bit."""
    folder = baseline_folder(output)
    if folder is None:
        raise SoraError(f"{output} holds no result of {ready.method.name}")
    trained: dict[str, Tensor] = ready.base.model.state_dict()
    reason = _reason_against(trained)
    if reason is not None:
        say(f"not verified: {reason}; {_scored(output)}")
        return OK
    notice = announcement(report)
    if notice is not None:
        say(notice)
    loaded = load_baseline(folder, recipe, ready.task).model.state_dict()
    different = [
        name
        for name in dict.fromkeys([*trained, *loaded])
        if name not in trained
        or name not in loaded
        or not torch.equal(trained[name].cpu(), loaded[name].cpu())
    ]
    if different:
        text = f"DIFFERENT: {folder} does not give the trained model: {first_few(different, 1)}"
        say(text, always=True)
        return FAILED
    say(f"verified: {folder} gives all {len(trained)} tensors of the trained model, to the bit")
    return OK


def _reason_against(trained: dict[str, Tensor]) -> str | None:
    """Return the reason not to load the model again without being asked; None if there is none."""
    if any(is_sharded(tensor) for tensor in trained.values()):
        return "the model is sharded"
    return too_large([sum(t.numel() * t.element_size() for t in trained.values())])
