"""The last step of a run: its files are loaded and compared with the trained model."""

from __future__ import annotations

from pathlib import Path
from shlex import quote

import torch
from torch import Tensor

from methods.sharding import is_sharded
from sora_cli.adapter.places import baseline_folder
from sora_cli.core.console import say
from sora_cli.core.errors import SoraError
from sora_cli.core.exit_codes import FAILED, NO_VERDICT, OK
from sora_cli.core.words import first_few
from sora_cli.recipe.load import LoadedRecipe
from sora_cli.recipe.recipe import Recipe
from sora_cli.run.prepare import Prepared
from sora_cli.run.stored import load_baseline
from sora_cli.verify.self_check import self_check, too_large


def check_run(loaded: LoadedRecipe, ready: Prepared) -> int:
    """Compare a run's files with the trained model, as far as that can be done here.

    Says one line on stderr: verified, not verified and why, or DIFFERENT.

    Returns:
        Exit code: FAILED if they differ; OK also if nothing was compared.

    Raises:
        SoraError: the files cannot be loaded.
    """
    recipe, output = loaded.recipe, loaded.output_dir
    if ready.baseline is not None:
        return _check_baseline(output, recipe, ready)
    if recipe.model.trust_remote_code:
        say(f"not verified: the model has code of its own; {_scored(output)}")
        return OK
    # this is one process of several: it cannot run a sharded model alone
    sharded = any(is_sharded(p) for p in ready.base.model.parameters())
    packed = recipe.model.quantise is not None  # the files are an adapter of the plain model
    if recipe.training.precision == "fp32" and not sharded and not packed:
        code = self_check(output, trained=ready.base.model, fresh=False)
    else:
        code = self_check(output)  # autocast stays wrapped around the trained model's forward
    return OK if code == NO_VERDICT else code


def _scored(output: Path) -> str:
    return f"sora eval {quote(str(output))} --recipe RECIPE scores it again"


def _check_baseline(output: Path, recipe: Recipe, ready: Prepared) -> int:
    """Compare every tensor of the model that the files give with the trained one, to the bit."""
    folder = baseline_folder(output)
    if folder is None:
        raise SoraError(f"{output} holds no result of {ready.method.name}")
    trained: dict[str, Tensor] = ready.base.model.state_dict()
    reason = _reason_against(trained)
    if reason is not None:
        say(f"not verified: {reason}; {_scored(output)}")
        return OK
    loaded = load_baseline(folder, recipe, ready.task).model.state_dict()
    different = [
        name
        for name in dict.fromkeys([*trained, *loaded])
        if name not in trained
        or name not in loaded
        or not torch.equal(trained[name].cpu(), loaded[name].cpu())
    ]
    if different:
        say(f"DIFFERENT: {folder} does not give the trained model: {first_few(different, 1)}")
        return FAILED
    say(f"verified: {folder} gives all {len(trained)} tensors of the trained model, to the bit")
    return OK


def _reason_against(trained: dict[str, Tensor]) -> str | None:
    """Return why the model should not be loaded again unasked; None if it may be."""
    if any(is_sharded(tensor) for tensor in trained.values()):
        return "the model is sharded"
    return too_large([sum(t.numel() * t.element_size() for t in trained.values())])
