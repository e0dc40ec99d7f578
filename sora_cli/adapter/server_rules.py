"""Rules of inference servers for adapter directories: one table, and one function to apply it.

vLLM's and llama.cpp's are in `consumers`. The others were read in November 2026 from the source
that each entry names. None of these servers warns about a directory that it applies wrongly.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from shlex import quote

from sora_cli.adapter.peft.config import PeftConfig
from sora_cli.core.words import first_few

_DECODER = frozenset(
    ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
)  # layers of Llama and its kin


@dataclass(frozen=True)
class Rules:
    """The rules of one server.

    Attributes:
        source: the version or commit, and the files, that were read.
        per_tensor: the strength is `alpha / rank of the tensor`; else one `alpha / r` for all.
        rslora: it divides by the square root if the configuration says so.
        uneven: modules may have different ranks.
        every_layer: a kind of module has to be adapted in all layers of the model or in none; if
            not, the kind is ignored without a warning.
        modules: last parts of the paths that may be adapted; None: any.
        command: starts the server; with BASE, DIR and RANK.
    """

    name: str
    source: str
    per_tensor: bool
    rslora: bool
    uneven: bool
    every_layer: bool
    modules: frozenset[str] | None
    command: str


SERVERS = (
    Rules(
        name="SGLang",
        source="sglang 0.5.23: srt/lora/lora.py, mem_pool.py, utils.py",
        per_tensor=False,
        rslora=False,
        uneven=False,  # load_lora_weight_tensor asserts the shape that r gives
        every_layer=False,
        modules=_DECODER | {"qkv_proj", "gate_up_proj"},
        command="python -m sglang.launch_server --model-path BASE --enable-lora "
        "--max-lora-rank RANK --lora-paths adapter=DIR",
    ),
    Rules(
        name="TensorRT-LLM",
        source="TensorRT-LLM 007e181b: tensorrt_llm/lora_manager.py (load_from_hf)",
        per_tensor=True,
        rslora=True,
        uneven=True,
        every_layer=False,
        modules=_DECODER | {"gate_up_proj"},
        command="LoRARequest('adapter', 0, 'DIR') and LoraConfig(lora_dir=['DIR'], "
        "max_lora_rank=RANK) in its Python API",
    ),
    Rules(
        name="LoRAX",
        source="lorax a7394ba3: server/lorax_server/adapters/lora.py (LoraWeights.load)",
        per_tensor=False,
        rslora=True,
        uneven=False,  # torch.stack over the layers
        every_layer=True,
        modules=_DECODER,
        command="lorax-launcher --model-id BASE --adapter-source local --adapter-id DIR",
    ),
    Rules(
        name="TGI",
        source="text-generation-inference db931fcf: adapters/lora.py (prepare_weights)",
        per_tensor=False,
        rslora=True,
        uneven=False,
        every_layer=True,
        modules=_DECODER,
        command="LORA_ADAPTERS=adapter=DIR text-generation-launcher --model-id BASE",
    ),
)
"""Servers of language models that load PEFT's directories without conversion."""


def judge_directory(
    rules: Rules,
    config: PeftConfig,
    ranks: Mapping[str, int],
    *,
    head: tuple[str, ...],
    directory: str,
    base: str,
    layers: int | None,
    more: str | None = None,
) -> tuple[bool, str]:
    """Return true and the command if a server can load a directory; else false and the remedy.

    Args:
        ranks: module path -> stored rank.
        head: modules stored in full.
        directory: the directory's name in the commands.
        layers: number of the base model's layers, if known.
        more: end of a sentence about parts other than factors of linear layers; None: there are
            none.
    """
    merge = "sora merge first"
    if head:
        return False, f"takes no {first_few(head)}, stored in full: {merge}"
    if more is not None:
        return False, f"{more}: {merge}"
    unsupported = sorted(
        {path.rpartition(".")[2] for path in ranks} - (rules.modules or frozenset())
    )
    if unsupported and rules.modules is not None:
        return False, f"has no place for {first_few(unsupported)}: {merge}"
    if rules.every_layer and (gap := _first_gap(ranks, layers)) is not None:
        return False, f"ignores all {gap[0]}, since layer {gap[1]} has none: {merge}"
    if not config.is_plain:
        return False, f"sora export {quote(directory)} -o OUT --layout padded first"
    why = _objection(rules, config, ranks)
    if why is not None:
        return False, f"{why}: sora export {quote(directory)} -o OUT --layout padded first"
    values = {"BASE": quote(base), "DIR": quote(directory), "RANK": str(max(ranks.values()))}
    # in one pass: a directory's name may itself hold BASE or RANK
    return True, re.sub("BASE|DIR|RANK", lambda match: values[match[0]], rules.command)


def _objection(rules: Rules, config: PeftConfig, ranks: Mapping[str, int]) -> str | None:
    """Return the reason against the strength or the ranks of a directory; None: no reason."""
    if not rules.uneven and any(rank != config.r for rank in ranks.values()):
        return "needs the rank r of its configuration in all modules"
    for path, rank in ranks.items():
        r = max(rank, 1) if rules.per_tensor else config.r
        divisor = math.sqrt(r) if config.use_rslora and rules.rslora else r
        if not math.isclose(config.scaling(path), config.lora_alpha / divisor, rel_tol=1e-6):
            by = "the rank of each tensor" if rules.per_tensor else "r for all modules"
            return f"applies alpha / {by}"
    return None


def _first_gap(ranks: Mapping[str, int], layers: int | None) -> tuple[str, int] | None:
    """Return a kind of module without an adapter in some layers, and the first layer without it."""
    found: dict[str, set[int]] = {}
    for path in ranks:
        match = re.fullmatch(r"(.*?\.)(\d+)(\..+)", path)
        if match is not None:
            found.setdefault(match[3].removeprefix("."), set()).add(int(match[2]))
    count = layers or 1 + max((max(numbers) for numbers in found.values()), default=-1)
    for kind, numbers in found.items():
        missing = set(range(count)) - numbers
        if missing:
            return kind, min(missing)
    return None
