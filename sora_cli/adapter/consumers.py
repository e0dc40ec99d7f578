"""Programs that can load an adapter directory, with the options they need or a command to run.

The verdicts follow from the configuration, the stored ranks and, if it is known, the kind of base
model. Each program has its own rule for the strength of an update. If the rule differs from PEFT's,
the program loads a directory without a warning and applies it wrongly:

- PEFT and transformers: `alpha / r` per module, patterns and rsLoRA as written; no adapters on some
  layers of some kinds of model (`adapter/peft/refused.py`).
- vLLM: before 0.33 (or a little earlier) one `alpha / r` (rsLoRA: `alpha / sqrt(r)`) for all
  modules, both patterns ignored; 0.33.0 follows them as PEFT does. Smaller ranks fit; neither `r`
  nor a rank in the pattern may exceed `--max-lora-rank`. Nothing may be stored in full but, in its
  newest versions, the head of a sequence classifier (vllm/lora/peft_helper.py,
  vllm/config/lora.py). No text-to-text model, such as T5 (pull request 24907); no adapters for the
  kinds of model whose column LoRA is empty in its docs/models/supported_models.md (January 2026). A
  base weight stored beside factors on the embedding or `lm_head` is ignored without a warning
  (vllm/lora/utils.py, `is_base_embedding_weights`), as by llama.cpp's converter.
- llama.cpp: `alpha / rank of the tensor`, patterns and rsLoRA ignored. Its converter stops at any
  tensor that is not half of a LoRA pair, or whose layer has no name in the tables of the package
  `gguf`; and it transposes factors of GPT-2's Conv1D, which PEFT stores like those of any other
  layer (convert_lora_to_gguf.py). At run time there is no output layer that is tied to the
  embedding.
- SGLang, TensorRT-LLM, LoRAX, TGI: a table in `server_rules`. Ollama: llama.cpp's rules.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from shlex import quote
from typing import TYPE_CHECKING, Any

from sora_cli.adapter.foreign.places import DIFFUSERS_CLASS
from sora_cli.adapter.gguf_kinds import exact_in_gguf, gguf_names, has_tied_output
from sora_cli.adapter.metadata import read_json
from sora_cli.adapter.peft.refused import refused_today
from sora_cli.adapter.server_rules import SERVERS, judge_directory
from sora_cli.core.errors import SoraError
from sora_cli.core.words import first_few
from sora_cli.model.files import MODEL_CONFIG
from sora_cli.model.references import local_checkpoint

if TYPE_CHECKING:
    from sora_cli.adapter.metadata import BaseReference
    from sora_cli.adapter.peft.config import PeftConfig
    from sora_cli.adapter.reading import AdapterFile


VLLM_RANKS = 8, 16, 32, 64, 128, 256, 320, 512
"""Values of `--max-lora-rank` in all versions of vLLM (newer versions also accept 1)."""

VLLM_WITHOUT_LORA = {
    "arctic", "bert", "bloom", "clip", "dbrx", "falcon", "falcon_mamba", "flex_olmo", "gemma3n",
    "gemma3n_text", "gpt2", "gptj", "gpt_neox", "mamba", "mamba2", "minimax", "modernbert", "mpt",
    "nomic_bert", "olmoe", "persimmon", "roberta", "siglip", "stablelm", "starcoder2",
    "xlm-roberta", "zamba2",
}  # fmt: skip
"""Model types that vLLM serves without adapters only."""


@dataclass(frozen=True)
class Consumer:
    """The verdict on one program: can it load this directory without a change?

    Attributes:
        loads: it loads the directory and applies it at the right strength.
        advice: the way to load it, or the command to run first.
    """

    name: str
    loads: bool
    advice: str


@dataclass(frozen=True)
class _Facts:
    config: PeftConfig
    ranks: Mapping[str, int]
    head: tuple[str, ...]
    directory: str
    base: str
    base_config: Mapping[str, Any]
    more: str | None


def consumers(
    config: PeftConfig,
    ranks: Mapping[str, int],
    *,
    head: tuple[str, ...],
    directory: str,
    base_config: Mapping[str, Any] | None = None,
    more: str | None = None,
) -> tuple[Consumer, ...]:
    """Return the verdict for each program on an adapter directory.

    Args:
        ranks: module path -> stored rank.
        head: modules stored in full.
        directory: the directory's name in the commands.
        base_config: the base model's config.json; None: it is not at hand.
        more: end of a sentence about parts other than factors of linear layers, such as "refuses
            DoRA's magnitudes"; None: there are no such parts.
    """
    base = config.base_model_name_or_path or "BASE"
    facts = _Facts(config, ranks, head, directory, base, base_config or {}, more)
    lost = _lost_in_peft(facts)
    if DIFFUSERS_CLASS in facts.base_config:
        others = ("transformers", "vLLM", "llama.cpp")
        no = (Consumer(name, False, "its base model is a diffusers model") for name in others)
        return _peft(config, lost), *no
    llama_cpp = _llama_cpp(facts)
    own = (_peft(config, lost), _transformers(config, lost), _vllm(facts), llama_cpp)
    if config.task_type != "CAUSAL_LM":
        return own
    return (*own, *_servers(facts), _ollama(facts, llama_cpp))


def consumers_of(
    file: AdapterFile, *, name: str | None = None, base: str | None = None
) -> tuple[Consumer, ...]:
    """Return the verdict for each program on an open adapter directory.

    Args:
        name: the adapter's name in the commands; None: its directory.
        base: the base model's name in the commands; None: the name in the configuration.
    """
    config = file.config
    if base is not None:
        config = config.model_copy(update={"base_model_name_or_path": base})
    return consumers(
        config,
        file.ranks,
        head=file.head_modules,
        directory=str(file.directory) if name is None else name,
        base_config=base_configuration(file.base),
        more=_other_parts(file),
    )


def _other_parts(file: AdapterFile) -> str | None:
    """Return the part of an adapter, besides its head, that servers refuse; None: there is none."""
    if file.magnitudes:
        return "refuses DoRA's magnitudes"
    if file.tokens:
        return "refuses trained rows of an embedding"
    if file.biases:
        return "refuses trained biases"
    if file.base_weights:  # vLLM and llama.cpp pass over it without a word
        return f"takes no {file.base_weights[0]}, stored in full"
    first = next(iter(file.forms.items()), None)
    if first is None:
        return None
    path, form = first
    return f"refuses factors of the {'embedding' if form.embedding else 'convolution'} {path}"


def base_configuration(base: BaseReference) -> dict[str, Any] | None:
    """Return the base model's config.json; None if it is not here, or cannot be read."""
    folder = local_checkpoint(base.resolved or base.path, base.revision)
    if folder is None or not (folder / MODEL_CONFIG).is_file():
        return None
    try:
        raw = read_json(folder / MODEL_CONFIG)
    except (SoraError, OSError):
        return None
    return raw if isinstance(raw, dict) else None


def _lost_in_peft(facts: _Facts) -> str | None:
    """Return the module that PEFT does not load, with the reason; None if it loads all."""
    model_type = facts.base_config.get("model_type")
    lost = refused_today(model_type, facts.ranks) if isinstance(model_type, str) else {}
    if not lost:
        return None
    return f"{first_few(lost, 1)}: {next(iter(lost.values()))}; sora merge first"


def _peft(config: PeftConfig, lost: str | None) -> Consumer:
    if lost is not None:
        return Consumer("PEFT", False, lost)
    advice = "PeftModel.from_pretrained(model, directory)"
    patterns = {**(config.rank_pattern or {}), **(config.alpha_pattern or {})}
    if any(key.startswith("^") for key in patterns):
        advice += ", from PEFT 0.15 on"  # older ones never match an anchored pattern
    init = config.init_lora_weights
    if init is False or init == "orthogonal":
        setting = f"init_lora_weights is {str(init).lower()}"
        advice += f"; {setting}: targets missing from the file get random factors"
    return Consumer("PEFT", True, advice)


def _transformers(config: PeftConfig, lost: str | None) -> Consumer:
    if lost is not None:
        return Consumer("transformers", False, lost)
    if config.peft_type != "LORA":
        return Consumer(
            "transformers", False, "load it with PEFT's PeftModel, or sora export first"
        )
    if _without_prefix():
        advice = "load_adapter of 5.4 and 5.5 misreads the tensors' names: use PeftModel, or 5.6"
        return Consumer("transformers", False, advice)
    advice = "model.load_adapter(directory), with PEFT installed, from transformers 5.6 on"
    return Consumer("transformers", True, advice)


def _without_prefix() -> bool:
    """Return true if the installed transformers cannot load a plain LoRA (5.4 and 5.5)."""
    try:
        return version("transformers").startswith(("5.4.", "5.5."))
    except PackageNotFoundError:
        return False


def _vllm(facts: _Facts) -> Consumer:
    config, ranks, head = facts.config, facts.ranks, facts.head
    if config.task_type == "SEQ_2_SEQ_LM":
        return Consumer("vLLM", False, "serves no text-to-text model, such as T5 or BART")
    kind = facts.base_config.get("model_type")
    if kind in VLLM_WITHOUT_LORA:
        return Consumer("vLLM", False, f"takes no adapters for {kind} models: sora merge first")
    if head and config.task_type != "SEQ_CLS":
        return Consumer(
            "vLLM", False, f"refuses {', '.join(head)}, stored in full: sora merge first"
        )
    if facts.more is not None:
        return Consumer("vLLM", False, f"{facts.more}: sora merge first")
    if not config.is_plain:
        return _export_first("vLLM", facts.directory)
    if any(not _is_close(config.scaling(path), _global_scaling(config)) for path in ranks):
        return _export_first(
            "vLLM", facts.directory, "before 0.33 applies one alpha / r to all modules"
        )
    needed = max(config.r, *ranks.values())  # r counts for vLLM even if no module has this rank
    fits = next((rank for rank in VLLM_RANKS if rank >= needed), None)
    if fits is None:
        cut = f"sora prune --rank {VLLM_RANKS[-1]} first"
        return Consumer("vLLM", False, f"takes ranks up to {VLLM_RANKS[-1]}, not {needed}: {cut}")
    option = f"--max-lora-rank {fits}"
    if head:
        newest = f"the newest take it with {option}"
        return Consumer("vLLM", False, f"older versions refuse a classifier's head ({newest}): "
                                       "sora merge first")  # fmt: skip
    return Consumer("vLLM", True, f"vllm serve {quote(facts.base)} --enable-lora {option} "
                                  f"--lora-modules adapter={quote(facts.directory)}")  # fmt: skip


def _llama_cpp(facts: _Facts) -> Consumer:
    config, base = facts.config, quote(facts.base)
    refused = f"refuses {', '.join(facts.head)}, stored in full" if facts.head else None
    refused = refused or facts.more or _missing_in_llama_cpp(facts)
    if refused is not None:
        return Consumer("llama.cpp", False, f"{refused}: sora merge first")
    form = "gguf" if exact_in_gguf(facts.base_config.get("model_type")) else "padded"
    if not config.is_plain:
        return _export_first("llama.cpp", facts.directory, form=form)
    if config.fan_in_fan_out:
        reason = "its converter transposes the factors of Conv1D layers once too often"
        return _export_first("llama.cpp", facts.directory, reason, form=form)
    for path, rank in facts.ranks.items():
        if rank and not _is_close(config.scaling(path), config.lora_alpha / rank):
            reason = "applies alpha / rank of each tensor"
            return _export_first("llama.cpp", facts.directory, reason, form=form)
    if facts.base.lower().endswith(".gguf"):
        base = "DIR, with the config.json of the model the GGUF file was made from"
    convert = f"convert_lora_to_gguf.py {quote(facts.directory)} --base {base}"
    if form == "gguf":
        own = f"sora export {quote(facts.directory)} -o adapter.gguf --format gguf"
        return Consumer("llama.cpp", True, f"{own}, or {convert}")
    return Consumer("llama.cpp", True, convert)


def _servers(facts: _Facts) -> Iterator[Consumer]:
    layers = facts.base_config.get("num_hidden_layers")
    for rules in SERVERS:
        loads, advice = judge_directory(
            rules,
            facts.config,
            facts.ranks,
            head=facts.head,
            directory=facts.directory,
            base=facts.base,
            layers=layers if isinstance(layers, int) else None,
            more=facts.more,
        )
        yield Consumer(rules.name, loads, advice)


def _ollama(facts: _Facts, llama_cpp: Consumer) -> Consumer:
    """Return the verdict on Ollama, which starts llama.cpp's server with `--lora`.

    Its own conversion of directories (convert/convert_llama_adapter.go) uses other names and
    another order of rows than llama.cpp, so it is given a GGUF file.
    """
    if not llama_cpp.loads and "sora export" not in llama_cpp.advice:
        return Consumer("Ollama", False, llama_cpp.advice)
    export = f"sora export {quote(facts.directory)} -o adapter.gguf --format gguf first"
    return Consumer("Ollama", False, f"{export}, then ollama create NAME -f adapter.Modelfile")


def _missing_in_llama_cpp(facts: _Facts) -> str | None:
    """Return a part of the model for which llama.cpp takes no factors; None: none is known."""
    kind = facts.base_config.get("model_type")
    if facts.config.fan_in_fan_out and not exact_in_gguf(kind):
        return "transposes the factors of Conv1D layers once too often"
    tied = [path for path in facts.ranks if path.split(".")[-1] == "lm_head"]
    if tied and has_tied_output(facts.base_config):
        return f"cannot adapt {tied[0]}, which is tied to the embedding"
    if not isinstance(kind, str):
        return None
    try:
        names = gguf_names(kind, facts.ranks)
    except LookupError:
        return f"knows no {kind} models"
    lost = [path for path, name in (names or {}).items() if name is None]
    return f"has no place for {lost[0]} of a {kind} model" if lost else None


def _export_first(name: str, directory: str, reason: str = "", *, form: str = "") -> Consumer:
    commands = {
        "gguf": f"sora export {quote(directory)} -o adapter.gguf --format gguf first",
        "padded": f"sora export {quote(directory)} -o OUT --layout padded first",
    }
    command = commands.get(form, f"sora export {quote(directory)} -o OUT first")
    return Consumer(name, False, f"{reason}: {command}" if reason else command)


def _global_scaling(config: PeftConfig) -> float:
    return config.lora_alpha / (math.sqrt(config.r) if config.use_rslora else config.r)


def _is_close(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=1e-6)
