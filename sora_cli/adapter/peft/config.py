"""Read `adapter_config.json`, and refuse adapters that cannot be read, with the reason."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field, PrivateAttr, Strict, StrictBool, StrictInt, ValidationError

from sora_cli.adapter.peft import adalora, lycoris
from sora_cli.adapter.peft.patterns import match_patterns
from sora_cli.adapter.peft.targets import Targets
from sora_cli.core.errors import SoraError, first_mistake
from sora_cli.core.words import first_few

LORA = "LORA"
LARGEST_RANK = 2**20
_SIDES_SINCE = "0.19.1"  # see `adapter.apply.expert_weight`
_MOST_MODULES = 10_000  # of modules_to_save and target_parameters
_BIASES = ("none", "all", "lora_only")
# others, such as PiSSA, OLoRA, CorDA and LoftQ, also change the base weights
_SAFE_INITS = (True, False, None, "gaussian", "eva", "orthogonal")
# PEFT stores these heads even if modules_to_save does not name them
_HEADS_PEFT_ADDS = {
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
    "QUESTION_ANS": ("qa_outputs",),
}
# Options that make an adapter more, or other, than a sum of components
_VARIANTS = {
    "use_qalora": "QA-LoRA pools its inputs",
    "use_bdlora": "its factors are block-diagonal",
    "lora_bias": "it also adds a bias",
    "layer_replication": "it also repeats layers of the base model",
    "alora_invocation_tokens": "it is switched on by tokens in the input",
    "arrow_config": "it chooses among several adapters",
    "kasa_config": "it also cuts the base weight",
    "monteclora_config": "its factors are random",
    "velora_config": "it compresses the activations between its factors",
}
# Options of PEFT that may be true and change no weight
_WITHOUT_EFFECT = {"inference_mode"}
_KINDS = {
    "IA3": "it rescales activations",
    "VERA": "all its layers share their matrices",
    "VBLORA": "all its layers share their vectors",
    "RANDLORA": "all its layers share their matrices",
    "OFT": "it rotates the weights",
    "BOFT": "it rotates the weights",
    "HRA": "it reflects the weights",
    "FOURIERFT": "it stores Fourier coefficients",
    "LN_TUNING": "it trains the norms in full",
    "XLORA": "it mixes several adapters",
    "POLY": "it mixes several adapters",
    "TRAINABLE_TOKENS": "it trains rows of the embedding",
} | dict.fromkeys(
    ("PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING", "MULTITASK_PROMPT_TUNING", "CPT", "CARTRIDGE",
     "ADAPTION_PROMPT"),
    "it trains virtual tokens, not weights",
)  # fmt: skip
# kinds that PEFT's save_as_lora can convert
_TO_LORA = ("VBLORA", "VERA", "RANDLORA", "OFT", "BOFT", "HRA", "FOURIERFT")
_Number = Annotated[float, Strict()]
MERGE_HINT = (
    "PEFT itself can merge it into its base model: merge_and_unload(); if it adapts tied "
    "embeddings, use it unmerged"  # the merge changes input and output
)
FROM_ELSEWHERE = (
    "if another program wrote it, merge it there, and then: sora extract MERGED --base BASE -o DIR"
)
"""The hint for files and directories that are not PEFT's."""


class PeftConfig(Targets):
    """The keys of `adapter_config.json` that matter; AdaLoRA's in the terms of `adalora`."""

    peft_type: str
    peft_version: Any = None
    task_type: str | None = None
    base_model_name_or_path: str | None = None
    revision: str | None = None
    r: StrictInt = 8
    lora_alpha: _Number = 8
    use_rslora: StrictBool = False
    use_dora: StrictBool = False
    rank_pattern: dict[str, StrictInt] | None = None
    alpha_pattern: dict[str, _Number] | None = None
    module_ranks: dict[str, int] = Field(default_factory=dict)
    """Module path -> rank, if the configuration says it module by module (AdaLoRA)."""
    unknown_options: tuple[str, ...] = ()
    """Options that are true but belong to no known version of PEFT."""
    fan_in_fan_out: StrictBool = False
    bias: str = "none"
    init_lora_weights: bool | str | None = True
    ensure_weight_tying: bool = False
    trainable_token_indices: list[StrictInt] | dict[str, list[StrictInt]] | None = None
    target_parameters: list[str] | None = None

    _ranks: dict[str, int] = PrivateAttr(default_factory=dict)
    _alphas: dict[str, float] = PrivateAttr(default_factory=dict)

    @property
    def is_adalora(self) -> bool:
        """True for PEFT's AdaLoRA directories."""
        return self.peft_type == adalora.ADALORA

    @property
    def kind(self) -> str:
        """PEFT's name of the kind of adapter, such as "LoRA", "rsLoRA" or "DoRA"."""
        named = {adalora.ADALORA: "AdaLoRA", lycoris.LOHA: "LoHa", lycoris.LOKR: "LoKr"}
        if self.peft_type != LORA:
            return named.get(self.peft_type, self.peft_type)
        return "DoRA" if self.use_dora else "rsLoRA" if self.use_rslora else "LoRA"

    @property
    def is_plain(self) -> bool:
        """True for PEFT's LoRA with pairs alone: no magnitudes, no other products."""
        return self.peft_type == LORA and not self.use_dora

    def prepare(self, paths: Sequence[str], where: str) -> tuple[str, ...]:
        """Find the rank and alpha of each module; return notes on odd patterns and options."""
        by_rank, by_alpha = self.rank_pattern or {}, self.alpha_pattern or {}
        hits = match_patterns([*by_rank, *by_alpha], paths, where=where)
        notes = [
            f"adapter_config.json sets {_printable(name)}, an unknown option: it is ignored"
            for name in self.unknown_options
        ]
        for path in paths:
            self._ranks[path] = self.module_ranks.get(path, self.r)
            self._alphas[path] = self.lora_alpha
        if self.target_parameters and _is_before(self.peft_version, _SIDES_SINCE):
            notes.append(
                f"written by PEFT {_printable(str(self.peft_version))}, which took inputs of most "
                f"fused experts for outputs: PEFT from {_SIDES_SINCE} on may refuse the file; "
                "sora merge takes it"
            )
        self._ranks.update(_values_by_path("rank_pattern", by_rank, hits, notes))
        self._alphas.update(_values_by_path("alpha_pattern", by_alpha, hits, notes))
        return tuple(notes)

    def follow(self, paths: Iterable[str], parameter: str) -> None:
        """Give the experts in a parameter its rank and alpha."""
        self._ranks.update(dict.fromkeys(paths, self.rank(parameter)))
        self._alphas.update(dict.fromkeys(paths, self._alphas[parameter]))

    def head_notes(self, modules: Sequence[str]) -> tuple[str, ...]:
        """Return a note if `modules_to_save` names modules that the file does not hold.

        Args:
            modules: the modules that are stored in full.
        """
        added = _HEADS_PEFT_ADDS.get(self.task_type or "", ())
        entries = (entry for entry in self.modules_to_save or () if entry not in added)
        absent = [f"'{_printable(e)}'" for e in entries if not any(m.endswith(e) for m in modules)]
        if not absent:
            return ()
        return (
            f"modules_to_save: the file holds no tensor of {first_few(absent)}; PEFT refuses it "
            "for a model that has such a module",
        )

    def rank(self, path: str) -> int:
        """Return the rank that PEFT gives a module: by the first pattern that matches, else `r`."""
        if path not in self._ranks:
            self.prepare([path], "rank_pattern, alpha_pattern")
        return self._ranks[path]

    def scaling(self, path: str) -> float:
        """Return the factor of a module's `B A` in PEFT."""
        rank, alpha = self.rank(path), self._alphas[path]
        if self.is_adalora:
            return adalora.scaling(alpha, self.r)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)

    def token_indices(self, path: str) -> list[int]:
        """Return the trained rows of an embedding, by the first entry that ends its path.

        Beside a resized embedding PEFT also stores the rows of the weight tied to it, which no
        entry names: they are the rows of the only entry.
        """
        indices = self.trainable_token_indices or {}
        if isinstance(indices, list):
            return indices
        named = [rows for name, rows in indices.items() if path.endswith(name)]
        return next(iter(named or (indices.values() if len(indices) == 1 else ())), [])

    def head_module(self, name: str) -> str | None:
        """Return the path of the module around a parameter that is saved in full, or None.

        PEFT saves every module whose path ends with an entry (dot or not), and adds its own.
        """
        entries = (*(self.modules_to_save or ()), *_HEADS_PEFT_ADDS.get(self.task_type or "", ()))
        parts = name.split(".")
        paths = (".".join(parts[:end]) for end in range(1, len(parts)))
        return next((path for path in paths if path.endswith(entries)), None)


def parse_config(raw: Any, where: str, known: Sequence[str]) -> PeftConfig:
    """Check and type a configuration.

    Args:
        known: the types of PEFT's adapters that can be read.
    """
    if not isinstance(raw, dict) or not isinstance(raw.get("peft_type"), str):
        raise SoraError("this is not a PEFT adapter's configuration: it has no peft_type",
                        where=where, hint=FROM_ELSEWHERE)  # fmt: skip
    _refuse_kind(raw["peft_type"], where, known)
    plain = {key: value for key, value in raw.items() if key != "module_ranks"}
    plain["unknown_options"] = _unknown_options(raw) if raw["peft_type"] == LORA else ()
    if plain["peft_type"] == adalora.ADALORA:
        plain = adalora.plain_terms(plain, where)
    elif plain["peft_type"] in lycoris.PARTS:
        plain = lycoris.plain_terms(plain)
    try:
        config = PeftConfig.model_validate(plain)
    except ValidationError as error:
        raise SoraError(_printable(first_mistake(error), 200), where=where) from error
    _refuse_variants(config, raw, where)
    _check_values(config, where)
    return config


def _unknown_options(raw: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the options that are true but belong to no known version of PEFT."""
    known = {*PeftConfig.model_fields, *_VARIANTS, *_WITHOUT_EFFECT}
    return tuple(key for key, value in raw.items() if key not in known and value is True)


def _values_by_path(
    name: str, pattern: Mapping[str, Any], hits: Mapping[str, list[str]], notes: list[str]
) -> dict[str, Any]:
    """Return {module path: value of the first key that matches it}; add oddities to `notes`."""
    chosen: dict[str, tuple[str, Any]] = {}
    clashes: dict[str, tuple[str, str]] = {}
    for key, value in pattern.items():
        for path in hits[key]:
            first, taken = chosen.setdefault(path, (key, value))
            if taken != value:
                clashes.setdefault(path, (first, key))
    idle = [f"'{_printable(key)}'" for key in pattern if not hits[key]]
    if idle:
        notes.append(f"{name}: no module in the file matches {first_few(idle)}: it has no effect")
    if clashes:
        path, (first, second) = next(iter(clashes.items()))
        notes.append(
            f"{name}: '{_printable(first)}' and '{_printable(second)}' both match "
            f"{first_few(clashes)}; the first counts, as in PEFT: {chosen[path][1]:g}"
        )
    return {path: value for path, (_, value) in chosen.items()}


def _is_before(version: Any, other: str) -> bool:
    """Return True if a version is known and older."""
    return isinstance(version, str) and _numbers(version) < _numbers(other)


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d{1,9}", version)[:3]]


def _printable(text: str, limit: int = 80) -> str:
    """Shorten text that somebody else wrote, and make it printable, for a message."""
    return repr(text if len(text) <= limit else f"{text[:limit]}...")[1:-1]


def _refuse_kind(kind: str, where: str, known: Sequence[str]) -> None:
    if kind in known:
        return
    reason = _KINDS.get(kind, "its updates are not plain sums of rank-one terms B A")
    hint = "PEFT's save_as_lora() turns it into a LoRA" if kind in _TO_LORA else None
    article = "an" if kind[:1] in "AEIO" else "a"
    raise SoraError(
        f"this is {article} {_printable(kind, 40)} adapter: {reason}; "
        f"only {', '.join(known)} can be read",
        where=where,
        hint=hint,
    )


def _refuse_variants(config: PeftConfig, raw: Mapping[str, Any], where: str) -> None:
    for name, reason in _VARIANTS.items():
        if raw.get(name) not in (None, False, []):  # an empty mapping sets it
            raise SoraError(f"{name} is set: {reason}, which is more than a plain LoRA",
                            where=where, hint=MERGE_HINT)  # fmt: skip
    if config.target_parameters and (config.peft_type != LORA or config.use_dora):
        raise SoraError(f"target_parameters goes with plain LoRA only, not with {config.kind}",
                        where=where)  # fmt: skip
    if config.bias not in _BIASES:
        raise SoraError(
            f"bias: {_printable(config.bias, 40)} is not one of {', '.join(_BIASES)}", where=where
        )
    if config.init_lora_weights not in _SAFE_INITS:
        init = _printable(str(config.init_lora_weights), 40)
        raise SoraError(
            f"init_lora_weights: {init} also changes the base model",
            where=where,
            hint="PEFT's save_pretrained(path_initial_model_for_weight_conversion=...) converts it",
        )


def _check_values(config: PeftConfig, where: str) -> None:
    name = "init_r" if config.is_adalora else "r"
    ranks = {name: config.r, **(config.rank_pattern or {})}
    for key, rank in ranks.items():
        if not 1 <= rank <= LARGEST_RANK:
            raise SoraError(
                f"{_printable(key)}: ranks must be at least 1 and at most {LARGEST_RANK:,}, not "
                f"{_short(rank)}",
                where=where,
            )
    for key, alpha in {"lora_alpha": config.lora_alpha, **(config.alpha_pattern or {})}.items():
        if not 0 < alpha < math.inf:
            raise SoraError(
                f"{_printable(key)}: alpha must be above 0 and finite, not {alpha:g}", where=where
            )
    modules = config.modules_to_save or []
    if not all(modules):
        raise SoraError("modules_to_save: an empty name would match every module", where=where)
    names = {"modules_to_save": modules, "target_parameters": config.target_parameters or []}
    for key, entries in names.items():
        if len(entries) > _MOST_MODULES:
            raise SoraError(f"{key}: {len(entries):,} entries are too many", where=where)


def _short(number: int) -> str:
    return str(number) if abs(number) < 10**20 else "a number of many digits"
