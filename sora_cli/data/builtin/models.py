"""Small base models that the program makes itself (`model.path: builtin://NAME`).

They replace a family's pretrained models where there is no network. Each is made once and kept in
the cache of Hugging Face's libraries; from then on it is a model directory like any other. No heavy
library is imported for a model that exists already.

They are code and not files: the four models are 2.4 MB of safetensors, because random weights
cannot be compressed, and the code that builds them has fewer than 400 lines.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from methods.words import did_you_mean
from sora_cli.core.errors import SoraError

MODELS = {
    "tiny-vit": ("sora_cli.data.builtin.tiny_vit:write_tiny_vit", 1),
    "tiny-t5": ("sora_cli.data.builtin.tiny_t5:write_tiny_t5", 1),
    "tiny-llama": ("sora_cli.data.builtin.tiny_llama:write_tiny_llama", 1),
    "tiny-clip": ("sora_cli.data.builtin.tiny_clip:write_tiny_clip", 1),
}
"""Name -> the function that writes the model, and the version, which names its cache directory."""
_FOLDER = "sora-models"
_SEED = 0
_LEARNING_RATE = 3e-3
_LARGEST_GRADIENT = 1.0
_LOG = logging.getLogger(__name__)


def builtin_model(name: str) -> Path:
    """Return the directory of a built-in model; the model is made at the first call.

    Making it takes some seconds of one processor core and leaves random generators unchanged. If
    several processes ask at once, one makes the model and the others wait.
    """
    if name not in MODELS:
        raise SoraError(
            f"no built-in model '{name}'; {did_you_mean(name, MODELS)}",
            where=f"built in: {', '.join(MODELS)}",
            key="model.path",
        )
    _, version = MODELS[name]
    folder = _cache() / f"{name}-v{version}"
    if not folder.is_dir():
        try:
            _make(folder, name)
        except OSError as error:
            raise SoraError(
                f"the built-in model '{name}' cannot be written: {error}",
                hint="choose another place for the cache: HF_HOME=DIR",
            ) from error
    return folder


def _make(folder: Path, name: str) -> None:
    from filelock import FileLock

    from sora_cli.core.atomic import new_directory

    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        if folder.is_dir():  # another process made it while this one waited
            return
        _LOG.info("making the built-in model %s once; this takes some seconds", folder)
        with new_directory(folder) as temporary:
            writer(name)(temporary)


def writer(name: str) -> Callable[..., None]:
    """Return the function that writes a built-in model into an existing directory."""
    module, _, attribute = MODELS[name][0].partition(":")
    function: Callable[..., None] = getattr(importlib.import_module(module), attribute)
    return function


def _cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HOME) / _FOLDER


@contextmanager
def seeded() -> Iterator[None]:
    """Within this context, seed torch's generator and silence transformers; restore both after."""
    import torch

    from sora_cli.core.hub import quiet_loading

    with torch.random.fork_rng(devices=[]), quiet_loading():
        torch.default_generator.manual_seed(_SEED)
        yield


def teach(model: Any, batches: Iterator[Mapping[str, Any]], steps: int) -> None:
    """Train all weights of a model in place, one step a batch."""
    import torch

    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=_LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LEARNING_RATE, total_steps=steps)
    model.train()
    for batch in islice(batches, steps):
        model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, _LARGEST_GRADIENT)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    model.eval()
