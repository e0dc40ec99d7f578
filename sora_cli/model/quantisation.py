"""Quantise a base model's frozen linear layers with bitsandbytes during loading.

The files on disk stay unquantised, so an adapter has the same base model (and fingerprint) as one
trained without quantisation. Heads, output embeddings and adapters are not quantised. Source:
Dettmers et al. 2023, arXiv 2305.14314, section 3 (4 bits: NF4, double quantisation), and 2022,
arXiv 2208.07339 (8 bits). bitsandbytes supports both on GPUs and, slowly, on CPUs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sora_cli.core.device import process_state
from sora_cli.core.errors import SoraError
from sora_cli.core.processes import launched_with
from sora_cli.model.transformers_internals import let_trainer_train
from sora_cli.recipe.recipe import ModelBlock

if TYPE_CHECKING:
    from torch import nn

    from methods.baselines import Baseline

KEY = "model.quantise"
_PLAIN = f"{KEY}=null"
_LAYERS = ("Linear4bit", "Linear8bitLt")
"""bitsandbytes' classes of layers; recognised by class, as a missing weight is not packed yet."""


def check_quantise(block: ModelBlock) -> None:
    """Check a recipe's quantisation before torch is imported; GGUF files and FSDP are refused."""
    if block.quantise is None:
        return
    if Path(block.path).suffix.lower() == ".gguf":
        raise SoraError(
            f"model '{block.path}' is a GGUF file: its weights are unpacked for training",
            where=f"{KEY}={block.quantise} works only for a directory or a Hub id",
            hint=_PLAIN,
            key=KEY,
        )
    check_bitsandbytes(KEY, block.quantise, plain=_PLAIN, unsharded="packed weights")


def check_bitsandbytes(key: str, value: str, *, plain: str, unsharded: str) -> None:
    """Check that bitsandbytes is installed for a recipe's setting, and that FSDP is not in use.

    Args:
        plain: override with which the setting needs no bitsandbytes.
        unsharded: plural noun for the data that FSDP cannot shard.
    """
    if find_spec("bitsandbytes") is None:
        raise SoraError(
            f"{key}={value} needs the package bitsandbytes, which is not installed",
            hint=f"pip install 'sora-cli[quant]', or {plain}",
            key=key,
        )
    if launched_with("ACCELERATE_USE_FSDP"):
        raise SoraError(
            f"{key}={value} is not supported under FSDP, which cannot shard {unsharded}",
            hint=f"torchrun without FSDP, or {plain}",
            key=key,
        )


def quantised_options(
    block: ModelBlock, *, precision: str, config: Any, plain: Sequence[str]
) -> dict[str, Any]:
    """Return the options of `from_pretrained` that quantise a model.

    Args:
        precision: of the run, as in `training.precision`; products with quantised weights use it.
        plain: module paths that are not quantised.
    """
    from transformers import BitsAndBytesConfig

    options: dict[str, Any] = {"llm_int8_skip_modules": list(plain)}
    if block.quantise == "8bit":
        options["load_in_8bit"] = True
    else:
        options |= {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": True,
            "bnb_4bit_compute_dtype": _compute_dtype(block.dtype, precision, config),
        }
    device = process_state().device
    return {"quantization_config": BitsAndBytesConfig(**options), "device_map": {"": device}}


def prepare_quantised(model: Any, reference: str, head: Sequence[str]) -> None:
    """Prepare a newly quantised model for adapters, in place; other models are left alone.

    A head that is quantised, because the checkpoint lacks it, is refused.

    Args:
        head: paths of the modules that are trained in full.
    """
    if quantised_as(model) is None:
        return
    for path in head:
        inside = model.get_submodule(path)
        if any(_is_packed(module) for module in inside.modules()):
            raise SoraError(
                f"model '{reference}' lacks '{path}', and a new module cannot be quantised",
                hint=f"check that the checkpoint is complete, or {_PLAIN}",
                key=KEY,
            )
    for module in model.modules():
        if type(module).__name__ == "Linear4bit":
            # else bitsandbytes repacks the weight on some CPUs at the first evaluation, in a form
            # that is read in 16 bits from then on and that passes no gradient
            # until: bitsandbytes > 0.50
            module.support_avx512bf16_for_cpu = False
    let_trainer_train(model)


def check_selected(model: nn.Module, method: Baseline) -> None:
    """Refuse a baseline that would train a quantised layer's own parameters."""
    if quantised_as(model) is None:
        return
    for name in method.select(dict(model.named_parameters())):
        if _is_packed(model.get_submodule(name.rpartition(".")[0])):
            raise SoraError(
                f"method {method.name} trains '{name}', whose layer is quantised",
                hint=f"{_PLAIN}, or a method that adds to the frozen layers, such as lora",
                key=KEY,
            )


def quantised_as(model: Any) -> str | None:
    """Return "4bit" or "8bit" for a model that bitsandbytes quantised in memory, else None."""
    for bits in ("4bit", "8bit"):
        if getattr(model, f"is_loaded_in_{bits}", False):
            return bits
    return None


def count_values(parameter: Any) -> int:
    """Return the number of values in a parameter; a packed one has fewer elements than values."""
    state = getattr(parameter, "quant_state", None)
    return int(parameter.numel() if state is None else math.prod(state.shape))


def _is_packed(module: nn.Module) -> bool:
    return type(module).__name__ in _LAYERS


def _compute_dtype(dtype: str, precision: str, config: Any) -> Any:
    import torch

    if precision != "fp32":
        return torch.bfloat16 if precision == "bf16" else torch.float16
    stored = getattr(config, "dtype", None) or torch.float32
    return stored if dtype == "auto" else getattr(torch, dtype)
