"""Which programs can load an adapter directory as it is, and what to pass them or do first.

The verdicts follow from the configuration and the stored ranks alone. Each program has its own rule
for the strength of an update, and the ones that differ load a directory without a word and apply
it wrongly:

- PEFT and transformers: `alpha / r` per module, patterns and rsLoRA as written.
- vLLM: one `alpha / r` (rsLoRA: `alpha / sqrt(r)`) for all modules, both patterns ignored; smaller
  ranks fit; `r` may not exceed `--max-lora-rank`; nothing stored in full but, in its newest
  versions, the head of a sequence classifier (vllm/lora/peft_helper.py, vllm/config/lora.py).
- llama.cpp: `alpha / rank of the tensor`, patterns and rsLoRA ignored; its converter stops at any
  tensor that is not half of a LoRA pair (convert_lora_to_gguf.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sora_cli.peft_config import PeftConfig

VLLM_RANKS = 8, 16, 32, 64, 128, 256, 320, 512
"""What `--max-lora-rank` takes in all versions (newer ones also take 1)."""


@dataclass(frozen=True)
class Consumer:
    """One program's verdict on a directory as it is.

    Attributes:
        loads: it loads the directory and applies it at the right strength.
        advice: how to load it, or what to do first.
    """

    name: str
    loads: bool
    advice: str


def consumers(
    config: PeftConfig, ranks: Mapping[str, int], *, head: tuple[str, ...], directory: str
) -> tuple[Consumer, ...]:
    """Judge an adapter directory.

    Args:
        config: its configuration.
        ranks: module path -> stored rank.
        head: modules stored in full.
        directory: how to name it in what is to be typed.
    """
    base = config.base_model_name_or_path or "BASE"
    return (
        _peft(config),
        _transformers(config),
        _vllm(config, ranks, head, directory, base),
        _llama_cpp(config, ranks, head, directory, base),
    )


def _peft(config: PeftConfig) -> Consumer:
    advice = "PeftModel.from_pretrained(model, directory)"
    patterns = {**(config.rank_pattern or {}), **(config.alpha_pattern or {})}
    if any(key.startswith("^") for key in patterns):
        advice += ", from PEFT 0.15 on"  # older ones never match an anchored pattern
    init = config.init_lora_weights
    if init is False or init == "orthogonal":
        shown = f"init_lora_weights is {str(init).lower()}"
        advice += f"; {shown}: targets missing from the file get random factors"
    return Consumer("PEFT", True, advice)


def _transformers(config: PeftConfig) -> Consumer:
    if not config.is_adalora:
        return Consumer("transformers", True, "model.load_adapter(directory), with PEFT installed")
    return Consumer("transformers", False, "load it with PEFT's PeftModel, or sora export first")


def _vllm(
    config: PeftConfig,
    ranks: Mapping[str, int],
    head: tuple[str, ...],
    directory: str,
    base: str,
) -> Consumer:
    if head and config.task_type != "SEQ_CLS":
        return Consumer("vLLM", False, f"refuses {_names(head)}, stored in full: sora merge first")
    if config.is_adalora:
        return _export("vLLM", directory)
    if any(not _same(config.scaling(path), _global_scaling(config)) for path in ranks):
        return _export("vLLM", directory, "applies one alpha / r to all modules")
    needed = max(config.r, *ranks.values())
    fits = next((rank for rank in VLLM_RANKS if rank >= needed), None)
    if fits is None:
        cut = f"sora prune --rank {VLLM_RANKS[-1]} first"
        return Consumer("vLLM", False, f"takes ranks up to {VLLM_RANKS[-1]}, not {needed}: {cut}")
    option = f"--max-lora-rank {fits}"
    if head:
        newest = f"the newest take it with {option}"
        return Consumer("vLLM", False, f"older versions refuse a classifier's head ({newest}): "
                                       "sora merge first")  # fmt: skip
    return Consumer("vLLM", True, f"vllm serve {base} --enable-lora {option} "
                                  f"--lora-modules adapter={directory}")  # fmt: skip


def _llama_cpp(
    config: PeftConfig,
    ranks: Mapping[str, int],
    head: tuple[str, ...],
    directory: str,
    base: str,
) -> Consumer:
    if head:
        return Consumer("llama.cpp", False,
                        f"refuses {_names(head)}, stored in full: sora merge first")  # fmt: skip
    if config.is_adalora:
        return _export("llama.cpp", directory, padded=True)
    for path, rank in ranks.items():
        if rank and not _same(config.scaling(path), config.lora_alpha / rank):
            reason = "applies alpha / rank of each tensor"
            return _export("llama.cpp", directory, reason, padded=True)
    return Consumer("llama.cpp", True, f"convert_lora_to_gguf.py {directory} --base {base}")


def _export(name: str, directory: str, reason: str = "", *, padded: bool = False) -> Consumer:
    layout = " --layout padded" if padded else ""
    command = f"sora export {directory} -o OUT{layout} first"
    return Consumer(name, False, f"{reason}: {command}" if reason else command)


def _global_scaling(config: PeftConfig) -> float:
    return config.lora_alpha / (math.sqrt(config.r) if config.use_rslora else config.r)


def _same(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=1e-6)


def _names(head: tuple[str, ...]) -> str:
    return ", ".join(head)
