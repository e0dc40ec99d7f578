"""What PEFT makes of an adapter directory: the yardstick, independent of all code here.

Numbers are compared in float64, so that rounding in the base model does not blur them.
"""

from __future__ import annotations

import copy
import json
import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import Tensor

from sora_cli.adapter.peft.layout import PREFIX
from sora_cli.model.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from tests.fuzz.outcome import limited
from tests.helpers_adapters import logits
from tests.present import present

_COMPUTED_FROM = (
    "peft_type", "task_type", "r", "init_r", "lora_alpha", "rank_pattern", "alpha_pattern",
    "use_rslora",
    "fan_in_fan_out",
)  # fmt: skip
"""Options that what a loaded adapter computes rests on; which modules it is of is in the file."""
_LORA = ".lora_"
_PATIENCE = 2  # seconds; expressions in a configuration can take forever
_SMALLEST = 1e-25  # below this, relative errors are those of float32's smallest numbers


@dataclass(frozen=True)
class Loaded:
    """An adapter as PEFT applies it.

    Attributes:
        updates: module path -> dW, float64; modules whose dW is 0 are not among them.
        logits: of the adapted model on fixed inputs.
    """

    updates: dict[str, Tensor]
    logits: Tensor


@dataclass(frozen=True)
class Refused:
    """PEFT did not load it, or could not compute with it."""

    reason: str


def load(base: Any, directory: Path) -> Loaded | Refused:
    """Load a directory with PEFT, into a copy of the base model."""
    with _quiet():
        try:
            with limited(_PATIENCE):
                tuned = PeftModel.from_pretrained(copy.deepcopy(base), directory)
            model = tuned.get_base_model().eval()
            return Loaded(dict(_updates(model)), logits(model).double())
        except Exception as error:
            return Refused(f"{type(error).__name__}: {error}"[:300])


def draws_at_random(directory: Path) -> bool:
    """Whether PEFT gives random numbers to targets that the file does not hold."""
    config = json.loads((directory / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    init = config.get("init_lora_weights", True)
    return not init or init == "orthogonal"


def load_plainly(base: Any, directory: Path) -> Loaded | Refused:
    """The same, with a configuration that says no more than what is computed.

    PEFT minds options that bear on nothing but training, and a target no linear layer has.
    """
    config = json.loads((directory / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    plain = {key: config[key] for key in _COMPUTED_FROM if config.get(key) is not None}
    if "lora_alpha" in plain:
        plain["lora_alpha"] = float(plain["lora_alpha"])  # of integers torch takes small ones only
    tensors = load_file(directory / ADAPTER_WEIGHTS)
    empty = {_module(key) for key, tensor in tensors.items() if not tensor.numel()}
    tensors = {key: tensor for key, tensor in tensors.items() if _module(key) not in empty}
    adapted = {_module(key) for key in tensors if _LORA in key}
    plain["target_modules"] = sorted(adapted)
    plain["modules_to_save"] = sorted({_module(key) for key in tensors} - adapted)
    if config["peft_type"] == "ADALORA":
        plain["total_step"] = 10
        plain.pop("alpha_pattern", None)
        kept = plain.get("rank_pattern", {}).items()
        plain["rank_pattern"] = {key: value for key, value in kept if _module(key) in adapted}
    with tempfile.TemporaryDirectory(dir=directory.parent) as name:
        (Path(name) / ADAPTER_CONFIG).write_text(json.dumps(plain), encoding="utf-8")
        save_file(tensors, Path(name) / ADAPTER_WEIGHTS, {"format": "pt"})
        return load(base, Path(name))


def _module(key: str) -> str:
    name = key.removeprefix(PREFIX)
    return name.partition(_LORA)[0] if _LORA in name else name.rpartition(".")[0]


def assert_agree(actual: Loaded, expected: Loaded, *, within: float, forward: bool = True) -> None:
    """The same updates, relative to the largest number of each, and the same logits."""
    for path in {*actual.updates, *expected.updates}:
        update, meant = (side.updates.get(path) for side in (actual, expected))
        either = present(update if meant is None else meant)
        update = torch.zeros_like(either) if update is None else update
        meant = torch.zeros_like(either) if meant is None else meant
        off, largest = (update - meant).abs().max(), meant.abs().max()
        assert off <= within * largest + _SMALLEST, f"{path} is off by {off:.2e} of {largest:.2e}"
    if forward and bool(expected.logits.isfinite().all()):
        off, largest = (actual.logits - expected.logits).abs().max(), expected.logits.abs().max()
        assert off <= within * largest, f"the logits are off by {off:.2e} of {largest:.2e}"


def _updates(model: Any) -> Iterator[tuple[str, Tensor]]:
    for path, module in model.named_modules():
        if isinstance(module, LoraLayer):
            layer: Any = module
            with torch.no_grad():
                update = layer.get_delta_weight("default").double()
            if bool(update.any()):
                yield path, update


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable()
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)
