"""PEFT's layout of a LoRA adapter: its files, its keys, and the configurations we write.

All facts about the format are here; `config` reads configurations, and the rest of the program uses
`adapter/directory` and `adapter/reading`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sora_cli.adapter.peft import lycoris
from sora_cli.adapter.peft.config import MERGE_HINT, PeftConfig
from sora_cli.adapter.peft.parameters import parameters_of
from sora_cli.adapter.peft.patterns import anchored
from sora_cli.adapter.peft.targets import targeted
from sora_cli.core.errors import SoraError

if TYPE_CHECKING:
    from torch import Tensor

PREFIX = "base_model.model."
AUTO_CLASSES = {
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "FEATURE_EXTRACTION": "AutoModel",
}
"""PEFT's task type -> transformers' Auto class."""

_A, _B, _E, _RANKNUM, _MAGNITUDE = "A", "B", "E", "ranknum", "magnitude"
_LORA = {".lora_A.weight": _A, ".lora_B.weight": _B}
_EMBEDDING = {".lora_embedding_A": "embedding A", ".lora_embedding_B": "embedding B"}
_DORA = {".lora_magnitude_vector": _MAGNITUDE}
_ADALORA = {".lora_A": _A, ".lora_B": _B, ".lora_E": _E, ".ranknum": _RANKNUM}
_BASE = ".base_layer."
_BIAS = ".bias"
_TOKENS = ".token_adapter.trainable_tokens_delta"
_UNUSED = (".original_module.", ".modules_to_save.")
"""Parts of the names of needless biases: `bias: all` also stores the biases of full modules."""
_EMBEDDINGS = ("lm_head", "wte", "shared")
"""Names of embeddings and output layers without "emb" in their name."""
_LONGEST_NAME = 500  # characters
_FOREIGN = {
    ".lora_magnitude_vector": "DoRA's magnitudes of '{}', but use_dora is not set",
    ".lora_B.bias": "a bias added by the adapter of '{}', which is more than a plain LoRA",
    ".token_adapter.": "of trained rows of the embedding '{}', but trainable_token_indices is not "
    "set",
}


@dataclass(frozen=True)
class Pair:
    """The keys of one module's factors; E and the scaling's divisor are AdaLoRA's.

    Attributes:
        magnitude: key of DoRA's magnitudes.
        embedding: the keys are spelled as PEFT does for an embedding.
    """

    a: str
    b: str
    e: str | None = None
    ranknum: str | None = None
    magnitude: str | None = None
    embedding: bool = False


@dataclass(frozen=True)
class SplitKeys:
    """The keys of an adapter file, sorted by meaning."""

    pairs: dict[str, Pair]
    """The pairs by module path."""
    products: dict[str, dict[str, str]]
    """Module path -> {part: key}, in LoHa and LoKr directories."""
    head: dict[str, str]
    """Parameter name in the base model -> key; trained biases and base weights among them."""
    tokens: dict[str, str]
    """Path of an embedding -> key of its trained rows."""
    biases: tuple[str, ...]
    """Names in `head` of trained biases, whose modules are not stored in full."""
    base_weights: tuple[str, ...]
    """Names in `head` of the base model's own parameters: of adapted modules, or of embeddings that
    were resized."""
    parameters: frozenset[str] = frozenset()
    """The paths in `pairs` that name a parameter, such as a tensor of fused experts."""

    def without_base_weights(self, names: Collection[str]) -> SplitKeys:
        """Return the keys without some of the base weights."""
        head = {name: key for name, key in self.head.items() if name not in names}
        weights = tuple(name for name in self.base_weights if name not in names)
        return replace(self, head=head, base_weights=weights)


def split_keys(keys: Iterable[str], config: PeftConfig, where: str) -> SplitKeys:
    """Sort the keys of an adapter file into pairs, products, head and token rows.

    Any other key is an error, and so is half a pair.
    """
    endings = _endings(config)
    parts: dict[str, dict[str, str]] = {}
    head: dict[str, str] = {}
    tokens: dict[str, str] = {}
    below: set[str] = set()
    base_weights: list[str] = []
    biases: list[str] = []
    for key in keys:
        name = key.removeprefix(PREFIX)
        if name == key:
            raise SoraError(f"{key[:200]!r} does not start with {PREFIX}", where=where)
        check_name(name, where)
        ending = next((ending for ending in endings if name.endswith(ending)), None)
        # the order matters: the bias of an adapted module is below `.base_layer.`, too
        if ending is not None:
            parts.setdefault(name.removesuffix(ending), {})[endings[ending]] = key
        elif config.trainable_token_indices is not None and name.endswith(_TOKENS):
            tokens[name.removesuffix(_TOKENS)] = key
        elif config.bias != "none" and name.endswith(_BIAS) and not config.head_module(name):
            biases.append(name.replace(_BASE, "."))
            head[biases[-1]] = key
        elif _BASE in name or (_is_embedding(name) and not config.head_module(name)):
            base_weights.append(name.replace(_BASE, "."))
            head[base_weights[-1]] = key
            below.update([name.partition(_BASE)[0]] if _BASE in name else [])
        elif config.head_module(name) is not None:
            if not any(part in name for part in _UNUSED):
                head[name] = key
        else:
            raise _unknown_key(name, where)
    for path in below - parts.keys():
        raise SoraError(f"'{path}' is stored in full but has no adapter", where=where)
    if not parts:
        raise SoraError("the file holds no LoRA pair", where=where)
    parameters: dict[str, str] = {}
    if config.target_parameters:
        for name in config.target_parameters:
            check_name(name, where)
        modules = targeted(config, list(parts), where)
        others = [path for path in parts if path not in modules]
        parameters = parameters_of(others or parts, config.target_parameters, where)
    parts = {parameters.get(path, path): found for path, found in parts.items()}
    if config.peft_type in lycoris.PARTS:
        for path, found in parts.items():
            wrong = lycoris.lacking(config.peft_type, found)
            if wrong:
                raise SoraError(f"'{path}' has {', '.join(sorted(found))}; missing or superfluous: "
                                f"{', '.join(wrong)}", where=where)  # fmt: skip
        return SplitKeys({}, parts, head, tokens, tuple(biases), tuple(base_weights))
    pairs = {path: _pair(path, found, config, where) for path, found in parts.items()}
    for path, pair in pairs.items():
        if config.ensure_weight_tying and (pair.embedding or path.endswith("lm_head")):
            raise SoraError(f"'{path}': ensure_weight_tying also gives its factors to the weights "
                            "tied to it, which cannot be read", where=where,
                            hint="PEFT itself can use it, unmerged")  # fmt: skip
    names = frozenset(parameters.values())
    return SplitKeys(pairs, {}, head, tokens, tuple(biases), tuple(base_weights), names)


def _endings(config: PeftConfig) -> Mapping[str, str]:
    if config.peft_type in lycoris.PARTS:
        return lycoris.PARTS[config.peft_type]
    if config.is_adalora:
        return _ADALORA
    return {**_LORA, **_EMBEDDING, **(_DORA if config.use_dora else {})}


def check_name(name: str, where: str) -> None:
    """Check that this could be the name of a model's parameter or module."""
    good = name.isprintable() and not set(name) & set("/\\") and len(name) <= _LONGEST_NAME
    if not good or not all(part.strip() for part in name.split(".")):
        raise SoraError(f"{name[:200]!r} cannot be the name of anything in a model", where=where)


def check_tensor(key: str, tensor: Tensor, where: str) -> None:
    """Check that a floating-point tensor holds neither NaN nor infinity."""
    if tensor.is_floating_point() and tensor.numel():
        wide = tensor if tensor.dtype.itemsize > 1 else tensor.float()  # no aminmax for float8
        if not all(bool(extreme.isfinite()) for extreme in wide.aminmax()):  # NaN wins both
            raise SoraError(f"'{key}' holds NaN or infinity", where=where)


def pair_keys(path: str, *, embedding: bool = False) -> tuple[str, str]:
    """Return the keys of a module's A and B in the files that we write."""
    if embedding:
        return f"{PREFIX}{path}.lora_embedding_A", f"{PREFIX}{path}.lora_embedding_B"
    return f"{PREFIX}{path}.lora_A.weight", f"{PREFIX}{path}.lora_B.weight"


def side_of(key: str) -> str | None:
    """Return "A" or "B" for one of the keys that `pair_keys` gives; None for any other key."""
    ending = next((end for end in (*_LORA, *_EMBEDDING) if key.endswith(end)), None)
    return None if ending is None else ending.removesuffix(".weight")[-1]


def loose_key(name: str, adapted: Iterable[str]) -> str:
    """Return the key of a bias or base weight: PEFT puts an adapted module's into `base_layer`."""
    path, _, last = name.rpartition(".")
    return f"{PREFIX}{path}{_BASE}{last}" if path in adapted else f"{PREFIX}{name}"


def token_key(path: str) -> str:
    """Return the name (a key without the prefix) of an embedding's trained rows."""
    return f"{path}{_TOKENS}"


def written_config(
    ranks: Mapping[str, int],
    *,
    parameters: Collection[str] = (),
    layout: str = "exact",
    base: str,
    revision: str | None,
    task_type: str | None,
    head_modules: Iterable[str],
    fan_in_fan_out: bool,
    biases: bool = False,
    tokens: Mapping[str, list[int]] | None = None,
) -> dict[str, Any]:
    """Return the configuration for our adapters: the scaling is in B, so alpha = r everywhere.

    Args:
        ranks: module path -> rank, at least 1 each.
        parameters: the paths in `ranks` that name a parameter.
        layout: one of `core.checks.LAYOUTS`.
        biases: the file holds trained biases of the base model.
        tokens: path of an embedding -> its trained rows.
    """
    largest = max(ranks.values())
    exact = layout == "exact"
    pattern = {anchored(path): r for path, r in ranks.items() if exact and r != largest}
    return {
        "peft_type": "LORA",
        "task_type": task_type,
        "base_model_name_or_path": base,
        "revision": revision,
        "inference_mode": True,
        "r": largest,
        "lora_alpha": largest,
        "lora_dropout": 0.0,
        "bias": "all" if biases else "none",
        "target_modules": sorted(ranks.keys() - parameters),
        **({"target_parameters": sorted(parameters)} if parameters else {}),
        "rank_pattern": pattern,
        "alpha_pattern": pattern,
        "modules_to_save": list(head_modules) or None,
        "fan_in_fan_out": fan_in_fan_out,
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
        **({"trainable_token_indices": dict(tokens)} if tokens else {}),
    }


def _pair(path: str, found: Mapping[str, str], config: PeftConfig, where: str) -> Pair:
    needed: tuple[str, ...] = (_A, _B, _E) if config.is_adalora else (_A, _B)
    embedding = any(part in found for part in _EMBEDDING.values())
    if embedding:
        needed = tuple(_EMBEDDING.values())
    if config.use_dora:
        needed = (*needed, _MAGNITUDE)
    missing = [part for part in needed if part not in found]
    if missing:
        there = " and ".join(f"a{'n' if p[0] in 'AEe' else ''} {p}" for p in needed if p in found)
        raise SoraError(f"'{path}' has {there or 'a ranknum'} but no {missing[0]}", where=where)
    if embedding and _A in found:
        raise SoraError(f"'{path}' has two pairs: a layer's and an embedding's", where=where)
    a, b = (found[part] for part in needed[:2])
    return Pair(a, b, found.get(_E), found.get(_RANKNUM), found.get(_MAGNITUDE), embedding)


def _unknown_key(name: str, where: str) -> SoraError:
    for part, meaning in _FOREIGN.items():
        if part in f"{name}.":
            module = name.partition(part.rstrip("."))[0]
            what = f"'{name}' is {meaning.format(module)}"
            return SoraError(what, where=where, hint=MERGE_HINT)
    what = f"'{name}' is neither half of a LoRA pair nor below modules_to_save"
    return SoraError(what, where=where)


def _is_embedding(name: str) -> bool:
    """Return true if a parameter's name is that of a model's embedding or output layer."""
    module = name.rpartition(".")[0].rpartition(".")[2]
    is_known = ("emb" in module and not module.startswith("lora_")) or module in _EMBEDDINGS
    return is_known and name.endswith((".weight", _BIAS))
