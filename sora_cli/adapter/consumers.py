"""Programs that can load an adapter directory, with the options they need or a command to run.

The verdicts follow from the configuration, the stored ranks and, if it is known, the kind of base
model. Each program has its own rule for the strength of an update. If the rule differs from PEFT's,
the program loads a directory without a warning and applies it wrongly:

- PEFT and transformers: `alpha / r` per module, patterns and rsLoRA as written; no adapters on some
  layers of some kinds of model (`adapter/peft/refused.py`).
- vLLM: smaller ranks fit; neither `r` nor a rank in the pattern may exceed `--max-lora-rank`.
  Nothing may be stored in full but, in its newest versions, the head of a sequence classifier. No
  text-to-text model, such as T5. A base weight stored beside factors on the embedding or `lm_head`
  is ignored without a warning (vllm/lora/utils.py, `is_base_embedding_weights`), as by llama.cpp's
  converter.
- llama.cpp: its converter stops at any tensor that is not half of a LoRA pair, or whose layer has
  no name in the tables of the package `gguf`; and it transposes factors of GPT-2's Conv1D, which
  PEFT stores like those of any other layer. At run time there is no output layer that is tied to
  the embedding.
- The strengths, ranks and layers of servers, with the versions that were read: `server_rules`.
  Ollama: llama.cpp's rules.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from sora_cli.adapter.gguf_kinds import exact_in_gguf, gguf_names, has_tied_output
from sora_cli.adapter.metadata import read_json
from sora_cli.adapter.peft.refused import refused_today
from sora_cli.adapter.server_rules import SERVERS, VLLM, Rules
from sora_cli.core.errors import SoraError
from sora_cli.core.shell import quote
from sora_cli.core.words import first_few
from sora_cli.model.files import MODEL_CONFIG
from sora_cli.model.references import local_checkpoint

if TYPE_CHECKING:
    from sora_cli.adapter.metadata import BaseReference
    from sora_cli.adapter.peft.config import PeftConfig
    from sora_cli.adapter.reading import AdapterFile


@dataclass(frozen=True)
class Consumer:
    """The verdict on one program: can it load this directory without a change?

    Attributes:
        loads: it loads the directory and applies it at the right strength.
        advice: the way to load it, or the reason and the command to run first.
        step: the kind of that command, a key of `_STEPS`; "": none. "gguf" where it loads: the
            directory is converted.
    """

    name: str
    loads: bool
    advice: str
    step: str = ""


_STEPS = {
    "merge": "sora merge first",
    "exact": "sora export DIR -o OUT first",
    "padded": "sora export DIR -o OUT --layout padded first",
    "gguf": "sora export DIR -o adapter.gguf --format gguf first",
    "prune": "sora prune DIR -o OUT --rank RANK first",
}
"""The commands that make a directory fit."""


@dataclass(frozen=True)
class _Facts:
    config: PeftConfig
    ranks: Mapping[str, int]
    head: tuple[str, ...]
    directory: str
    base: str
    base_config: Mapping[str, Any]
    more: str | None

    @property
    def kind(self) -> str | None:
        """The base model's type, such as "llama"; None: not known."""
        kind = self.base_config.get("model_type")
        return kind if isinstance(kind, str) else None


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
    llama_cpp = _llama_cpp(facts)
    own = (_peft(config, lost), _transformers(config, lost), _vllm(facts), llama_cpp)
    if config.task_type != "CAUSAL_LM":
        return own
    servers = (judge(rules, facts) for rules in SERVERS)
    return (*own, *servers, _ollama(facts, llama_cpp))


GROW = "model.resize_token_embeddings(len(tokenizer))"
"""The line of code that makes room for the rows of new tokens."""


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
    verdicts = consumers(
        config,
        file.ranks,
        head=file.head_modules,
        directory=str(file.directory) if name is None else name,
        base_config=base_configuration(file.base),
        more=_other_parts(file),
    )
    if not file.meta.new_tokens:
        return verdicts
    first = f"; first {GROW}, with the tokenizer beside the adapter"
    return tuple(replace(v, advice=v.advice + first) if v.loads else v for v in verdicts)


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
    if file.experts:
        # vLLM: is_3d_moe_weight in lora/model_manager.py (01533aa8); SGLang: pull request 25528;
        # llama.cpp's converter stops at the names
        return "takes fused experts of few kinds of model or none, and may drop them silently"
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
    lost = refused_today(facts.kind, facts.ranks) if facts.kind is not None else {}
    if not lost:
        return None
    return f"{first_few(lost, 1)}: {next(iter(lost.values()))}; {_STEPS['merge']}"


def _peft(config: PeftConfig, lost: str | None) -> Consumer:
    if lost is not None:
        return Consumer("PEFT", False, lost, "merge")
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
        return Consumer("transformers", False, lost, "merge")
    if config.peft_type != "LORA":
        advice = "load it with PEFT's PeftModel, or sora export first"
        return Consumer("transformers", False, advice, "exact")
    if _without_prefix():
        advice = "load_adapter of 5.4 and 5.5 misreads the tensors' names: use PeftModel, or 5.6"
        return Consumer("transformers", False, advice)
    advice = "model.load_adapter(directory), with PEFT installed, from transformers 5.6 on"
    return Consumer("transformers", True, advice)


def _without_prefix() -> bool:
    """Return true if the installed transformers cannot load a plain LoRA (5.4 and 5.5)."""
    try:  # until: transformers 5.6
        return version("transformers").startswith(("5.4.", "5.5."))
    except PackageNotFoundError:
        return False


def _vllm(facts: _Facts) -> Consumer:
    if facts.config.task_type == "SEQ_2_SEQ_LM":
        return Consumer("vLLM", False, "serves no text-to-text model, such as T5 or BART")
    heads = {path.rpartition(".")[2] for path in facts.head}
    if not heads or facts.config.task_type != "SEQ_CLS" or heads - {"classifier", "score"}:
        return judge(VLLM, facts)
    verdict = judge(VLLM, replace(facts, head=()))
    if not verdict.loads:
        return verdict
    option = f"--max-lora-rank {VLLM.rank_option(_largest_rank(facts))}"
    newest = f"older versions refuse a classifier's head (the newest take it with {option})"
    return _refused("vLLM", newest, "merge", facts)


def judge(rules: Rules, facts: _Facts) -> Consumer:
    """Return the verdict on a server by its rules."""
    refuse = partial(_refused, rules.name, facts=facts)
    if facts.kind in rules.without:
        return refuse(f"takes no adapters for {facts.kind} models", "merge")
    if facts.head:
        return refuse(f"refuses {first_few(facts.head)}, stored in full", "merge")
    if facts.more is not None:
        return refuse(facts.more, "merge")
    kinds = {path.rpartition(".")[2] for path in facts.ranks}
    if rules.modules is not None and kinds - rules.modules:
        return refuse(f"has no place for {first_few(sorted(kinds - rules.modules))}", "merge")
    if rules.every_layer and (gap := _first_gap(facts)) is not None:
        return refuse(f"ignores all {gap[0]}, since layer {gap[1]} has none", "merge")
    if not facts.config.is_plain:
        return refuse("", rules.layout)
    objection = _objection(rules, facts.config, facts.ranks)
    if objection is not None:
        return refuse(objection, rules.layout)
    needed = _largest_rank(facts) if rules.steps else max(facts.ranks.values())
    if rules.steps and needed > rules.steps[-1]:
        return refuse(f"takes ranks up to {rules.steps[-1]}, not {needed}", "prune",
                      rank=rules.steps[-1])  # fmt: skip
    values = {"BASE": facts.base, "DIR": facts.directory, "RANK": str(rules.rank_option(needed))}
    return Consumer(rules.name, True, filled(rules.command, values))


def filled(command: str, values: Mapping[str, str]) -> str:
    """Put values into a command, each quoted as the shell needs it."""
    return substituted(command, {name: quote(value) for name, value in values.items()})


def substituted(text: str, values: Mapping[str, str]) -> str:
    """Put values into a text, in one pass: a directory's name may itself hold BASE or RANK."""
    return re.sub("|".join(values), lambda match: values[match[0]], text)


def _largest_rank(facts: _Facts) -> int:
    """Return the rank that vLLM compares: r counts even if no module has it."""
    return max(facts.config.r, *facts.ranks.values())


def _llama_cpp(facts: _Facts) -> Consumer:
    config, base = facts.config, quote(facts.base)
    refused = f"refuses {', '.join(facts.head)}, stored in full" if facts.head else None
    refused = refused or facts.more or _missing_in_llama_cpp(facts)
    if refused is not None:
        return _refused("llama.cpp", refused, "merge", facts)
    form = "gguf" if exact_in_gguf(facts.kind) else "padded"
    if not config.is_plain:
        return _refused("llama.cpp", "", form, facts)
    if config.fan_in_fan_out:
        reason = "its converter transposes the factors of Conv1D layers once too often"
        return _refused("llama.cpp", reason, form, facts)
    for path, rank in facts.ranks.items():
        if rank and not _is_close(config.scaling(path), config.lora_alpha / rank):
            reason = "applies alpha / rank of each tensor"
            return _refused("llama.cpp", reason, form, facts)
    if facts.base.lower().endswith(".gguf"):
        base = "DIR, with the config.json of the model the GGUF file was made from"
    convert = f"convert_lora_to_gguf.py {quote(facts.directory)} --base {base}"
    if form == "gguf":
        own = f"sora export {quote(facts.directory)} -o adapter.gguf --format gguf"
        return Consumer("llama.cpp", True, f"{own}, or {convert}", "gguf")
    return Consumer("llama.cpp", True, convert)


def _ollama(facts: _Facts, llama_cpp: Consumer) -> Consumer:
    """Return the verdict on Ollama, which starts llama.cpp's server with `--lora`.

    Its own conversion of directories (convert/convert_llama_adapter.go) uses other names and
    another order of rows than llama.cpp, so it is given a GGUF file.
    """
    if llama_cpp.step == "merge":
        return replace(llama_cpp, name="Ollama")
    then = "then ollama create NAME -f adapter.Modelfile"
    export = _refused("Ollama", "", "gguf", facts)
    return replace(export, advice=f"{export.advice}, {then}")


def _missing_in_llama_cpp(facts: _Facts) -> str | None:
    """Return a part of the model for which llama.cpp takes no factors; None: none is known."""
    kind = facts.kind
    if facts.config.fan_in_fan_out and not exact_in_gguf(kind):
        return "transposes the factors of Conv1D layers once too often"
    tied = [path for path in facts.ranks if path.split(".")[-1] == "lm_head"]
    if tied and has_tied_output(facts.base_config):
        return f"cannot adapt {tied[0]}, which is tied to the embedding"
    if kind is None:
        return None
    try:
        names = gguf_names(kind, facts.ranks)
    except LookupError:
        return f"knows no {kind} models"
    lost = [path for path, name in (names or {}).items() if name is None]
    return f"has no place for {lost[0]} of a {kind} model" if lost else None


def _refused(name: str, reason: str, step: str, facts: _Facts, rank: int = 0) -> Consumer:
    """Return a verdict of no: the reason, and the command to run first."""
    command = filled(_STEPS[step], {"DIR": facts.directory, "RANK": str(rank)})
    return Consumer(name, False, f"{reason}: {command}" if reason else command, step)


def _objection(rules: Rules, config: PeftConfig, ranks: Mapping[str, int]) -> str | None:
    """Return the reason against the strength or the ranks of a directory; None: no reason."""
    if not rules.uneven and any(rank != config.r for rank in ranks.values()):
        return "needs the rank r of its configuration in all modules"
    for path, rank in ranks.items():
        r = max(rank, 1) if rules.strength == "tensor" else config.r
        divisor = math.sqrt(r) if config.use_rslora and rules.rslora else r
        if not _is_close(config.scaling(path), config.lora_alpha / divisor):
            by = "the rank of each tensor" if rules.strength == "tensor" else "r for all modules"
            return rules.before or f"applies alpha / {by}"
    return None


def _first_gap(facts: _Facts) -> tuple[str, int] | None:
    """Return a kind of module without an adapter in some layers, and the first layer without it."""
    adapted: dict[str, set[int]] = {}
    for path in facts.ranks:
        match = re.fullmatch(r"(.*?\.)(\d+)(\..+)", path)
        if match is not None:
            adapted.setdefault(match[3].removeprefix("."), set()).add(int(match[2]))
    layers = facts.base_config.get("num_hidden_layers")
    if not isinstance(layers, int) or not layers:
        layers = 1 + max((max(numbers) for numbers in adapted.values()), default=-1)
    for kind, numbers in adapted.items():
        missing = set(range(layers)) - numbers
        if missing:
            return kind, min(missing)
    return None


def _is_close(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=1e-6)
