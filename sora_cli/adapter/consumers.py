"""Programs that can load an adapter directory, with the options they need or a command to run.

The verdicts follow from the configuration, the stored ranks and, if it is known, the kind of base
model, by the table in `programs`. Where a program's strength of an update differs from PEFT's, it
loads a directory without a warning and applies it wrongly. What no row of the table says:

- A base weight stored beside factors on the embedding or `lm_head` is ignored without a warning by
  vLLM (vllm/lora/utils.py, `is_base_embedding_weights`) and by llama.cpp's converter.
- llama.cpp's converter stops at any tensor that is not half of a LoRA pair, or whose layer has no
  name in the tables of the package `gguf`. At run time there is no output layer that is tied to the
  embedding.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from sora_cli.adapter.metadata import read_json
from sora_cli.adapter.peft.parameters import experts_apart
from sora_cli.adapter.peft.refused import refused_today
from sora_cli.adapter.programs import PROGRAMS, Program
from sora_cli.core.environment import installed
from sora_cli.core.errors import SoraError
from sora_cli.core.shell import quote
from sora_cli.core.words import first_few
from sora_cli.gguf.kinds import exact_in_gguf, gguf_names, has_tied_output
from sora_cli.model.files import MODEL_CONFIG
from sora_cli.model.references import local_checkpoint

if TYPE_CHECKING:
    from sora_cli.adapter.adapter import Adapter
    from sora_cli.adapter.metadata import BaseReference
    from sora_cli.adapter.peft.config import PeftConfig


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
    tables: tuple[str, ...]

    @property
    def kind(self) -> str | None:
        """The base model's type, such as "llama"; None: not known."""
        kind = self.base_config.get("model_type")
        return kind if isinstance(kind, str) else None

    @property
    def classes(self) -> set[str]:
        """The classes that the base model's configuration names."""
        named = self.base_config.get("architectures")
        return {str(name) for name in named} if isinstance(named, list) else set()

    @property
    def is_gguf(self) -> bool:
        """The base model is a GGUF file."""
        return self.base.lower().endswith(".gguf")

    @property
    def is_whole(self) -> bool:
        """The base is a model for text and images, whose decoder can be run by itself."""
        whole = any(name.endswith("ForConditionalGeneration") for name in self.classes)
        return whole and "text_config" in self.base_config

    @property
    def largest_rank(self) -> int:
        """The rank that servers compare with their option: r counts even if no module has it."""
        return max((self.config.r, *self.ranks.values()))

    @cached_property
    def lost(self) -> Mapping[str, str]:
        """The modules that the installed PEFT does not load, with the reasons."""
        return {} if self.kind is None else refused_today(self.kind, self.ranks)

    @cached_property
    def gguf(self) -> str:
        """The form in which llama.cpp can have it: a GGUF file if that is exact."""
        return "gguf" if exact_in_gguf(self.kind) else "padded"


def consumers(
    config: PeftConfig,
    ranks: Mapping[str, int],
    *,
    head: tuple[str, ...],
    directory: str,
    base_config: Mapping[str, Any] | None = None,
    more: str | None = None,
    tables: tuple[str, ...] = (),
) -> tuple[Consumer, ...]:
    """Return the verdict for each program on an adapter directory.

    Args:
        ranks: module path -> stored rank.
        head: modules stored in full.
        directory: the directory's name in the commands.
        base_config: the base model's config.json; None: it is not at hand.
        more: end of a sentence about parts other than factors of linear layers, such as "refuses
            DoRA's magnitudes"; None: there are no such parts.
        tables: embeddings that have factors.
    """
    base = config.base_model_name_or_path or "BASE"
    facts = _Facts(config, ranks, head, directory, base, base_config or {}, more, tables)
    asked = (program for program in PROGRAMS if program.only in ("", config.task_type))
    return tuple(judge(program, facts) for program in asked)


GROW = "model.resize_token_embeddings(len(tokenizer))"
"""The line of code that makes room for the rows of new tokens."""


def consumers_of(
    adapter: Adapter, *, name: str | None = None, base: str | None = None
) -> tuple[Consumer, ...]:
    """Return the verdict for each program on an open adapter directory.

    Args:
        name: the adapter's name in the commands; None: its directory.
        base: the base model's name in the commands; None: the name in the configuration.
    """
    config = adapter.source.config
    if base is not None:
        config = config.model_copy(update={"base_model_name_or_path": base})
    verdicts = consumers(
        config,
        adapter.stored_ranks,
        head=adapter.head_modules,
        directory=str(adapter.source.directory) if name is None else name,
        base_config=base_configuration(adapter.base),
        more=adapter.objection(lambda part: part.unserved),
        tables=tuple(path for path, form in adapter.forms.items() if form.embedding),
    )
    if not adapter.meta.new_tokens:
        return verdicts
    first = f"; first {GROW}, with the tokenizer beside the adapter"
    return tuple(replace(v, advice=v.advice + first) if v.loads else v for v in verdicts)


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


def judge(program: Program, facts: _Facts) -> Consumer:
    """Return the verdict on a program: its first objection, or the way to load the directory."""
    for advice, step in _objections(program, facts):
        return Consumer(program.name, False, advice, step)
    config, base = facts.config, quote(facts.base)
    if program.layout == "gguf" and facts.is_gguf:
        base = "DIR, with the config.json of the model the GGUF file was made from"
    rank = program.rank_option(facts.largest_rank)
    values = {"BASE": base, "DIR": quote(facts.directory), "RANK": str(rank)}
    command = program.starts(program.command, config.task_type, facts.ranks)
    advice = substituted(command, values)
    if program.anchored and any(
        key.startswith("^") for key in (*(config.rank_pattern or ()), *(config.alpha_pattern or ()))
    ):
        advice += f", {program.anchored}"
    if program.draws and config.init_lora_weights in (False, "orthogonal"):
        setting = f"init_lora_weights is {str(config.init_lora_weights).lower()}"
        advice += f"; {setting}: targets missing from the file get random factors"
    if program.layout != "gguf" or facts.gguf != "gguf":
        return Consumer(program.name, True, advice)
    own = f"sora export {quote(facts.directory)} -o adapter.gguf --format gguf"
    return Consumer(program.name, True, f"{own}, or {advice}", "gguf")


def _objections(program: Program, facts: _Facts) -> Iterator[tuple[str, str]]:
    """Yield a program's objections to a directory, each with its step: see `Consumer`."""
    config, refuse = facts.config, partial(_refusal, facts)
    if (why := program.no_task.get(config.task_type or "")) is not None:
        yield why, ""
    if program.gguf_note and facts.is_gguf:
        yield refuse(program.gguf_note, "merge")
    for kind in program.without & {facts.kind} or program.classes & facts.classes:
        yield refuse(f"takes no adapters for {kind} models", "merge")
    names = program.layers.get(facts.kind or "", frozenset())
    if (path := next((p for p in facts.ranks if p.rpartition(".")[2] in names), None)) is not None:
        yield refuse(f"refuses factors of {path} in {facts.kind} models", "merge")
    if program.takes == "pairs":
        yield from _beside_pairs(program, facts)
    elif facts.lost:
        fate = next(iter(facts.lost.values()))
        yield f"{first_few(facts.lost, 1)}: {fate}; {_STEPS['merge']}", "merge"
    form = facts.gguf if program.layout == "gguf" else program.layout
    if not program.converts:
        advice, step = refuse("", "gguf")
        yield f"{advice}, {program.then}", step
    if program.takes == "pairs" and not config.is_plain:
        yield refuse("", form)
    if program.takes not in ("types", "pairs", config.peft_type):
        yield program.other_types, form
    if program.broken and (installed(program.name) or "").startswith(program.broken):
        yield program.broken_note, ""
    if program.conv1d and config.fan_in_fan_out:
        yield refuse(f"its converter {program.conv1d}", form)
    if program.strength != "module" and _is_misread(program, facts):
        yield refuse(program.strength_note, form)
    if program.steps and facts.largest_rank > (most := program.steps[-1]):
        reason = f"takes ranks up to {most}, not {facts.largest_rank}"
        yield refuse(reason, "prune", rank=most)
    if facts.head and program.heads:
        rank = program.rank_option(facts.largest_rank)
        yield refuse(substituted(program.heads_note, {"RANK": str(rank)}), "merge")


def _beside_pairs(program: Program, facts: _Facts) -> Iterator[tuple[str, str]]:
    """Yield the objections of a program that takes pairs alone to other parts, and to layers."""
    refuse = partial(_refusal, facts)
    heads = program.heads if facts.config.task_type == "SEQ_CLS" else ()
    if not {path.rpartition(".")[2] for path in facts.head} <= set(heads):
        yield refuse(f"refuses {first_few(facts.head)}, stored in full", "merge")
    if facts.more is not None:
        yield refuse(facts.more, "merge")
    if (table := _refused_table(program, facts)) is not None:
        yield refuse(f"refuses factors of {table}", "merge")
    if program.layout != "gguf":
        yield from (refuse(*objection) for objection in _about_whole_layers(facts))
        return
    if program.conv1d and facts.config.fan_in_fan_out and facts.gguf != "gguf":
        yield refuse(program.conv1d, "merge")
    if (missing := _missing_in_gguf(facts)) is not None:
        yield refuse(missing, "merge")


def _about_whole_layers(facts: _Facts) -> Iterator[tuple[str, str]]:
    """Yield vLLM's objections to a bias in the configuration, to names, and to experts."""
    if facts.config.bias != "none":  # the file holds none if the model has none
        yield f"refuses bias: {facts.config.bias}", "exact"
    # its decoder has longer names there, and names without a module are dropped without a word:
    # vllm-project/vllm#48019
    bare = next((path for path in facts.ranks if path.startswith("model.layers.")), None)
    if bare is not None and facts.is_whole:
        yield f"runs the base with its image part, where it finds no {bare}", "merge"
    keys = ("num_local_experts", "num_experts", "n_routed_experts")
    number = next((facts.base_config[key] for key in keys if key in facts.base_config), None)
    for layer, by_name in experts_apart(facts.ranks).items():
        sizes = {number or max(map(len, by_name.values())), *map(len, by_name.values())}
        if len(by_name) != 3 or len(sizes) > 1:
            yield f"takes {layer} only with factors for each weight of each expert", "merge"
        elif any(len({facts.ranks[path] for path in paths}) > 1 for paths in by_name.values()):
            yield f"takes one rank for all experts of {layer}", "padded"


def _refused_table(program: Program, facts: _Facts) -> str | None:
    """Return the embedding or output layer whose factors a program refuses; None: there is none."""
    taken = {"embed_tokens", "lm_head"} if facts.kind in program.embeddings else set()
    ends = [path for path in facts.ranks if path.rpartition(".")[2] == "lm_head"]
    tables = (*facts.tables, *(ends if program.embeddings else ()))  # llama.cpp: `gguf_names`
    return next((path for path in tables if path.rpartition(".")[2] not in taken), None)


def _refusal(facts: _Facts, reason: str, step: str, rank: int = 0) -> tuple[str, str]:
    """Return the advice on an objection, which ends with the command to run first, and the step."""
    command = filled(_STEPS[step], {"DIR": facts.directory, "RANK": str(rank)})
    return f"{reason}: {command}" if reason else command, step


def _is_misread(program: Program, facts: _Facts) -> bool:
    """Return true if a program applies an update at another strength than PEFT."""
    config = facts.config
    for path, rank in facts.ranks.items():
        r = rank if program.strength == "tensor" else config.r
        divisor = math.sqrt(r) if config.use_rslora and program.rslora else r
        if rank and not math.isclose(
            config.scaling(path), config.lora_alpha / divisor, rel_tol=1e-6
        ):
            return True
    return False


def _missing_in_gguf(facts: _Facts) -> str | None:
    """Return a part of the model for which llama.cpp takes no factors; None: none is known."""
    kind = facts.kind
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


def filled(command: str, values: Mapping[str, str]) -> str:
    """Put values into a command, each quoted as the shell needs it."""
    return substituted(command, {name: quote(value) for name, value in values.items()})


def substituted(text: str, values: Mapping[str, str]) -> str:
    """Put values into a text, in one pass: a directory's name may itself hold BASE or RANK."""
    return re.sub("|".join(values), lambda match: values[match[0]], text)
