"""The files beside the merged weights: configuration, record of the rounding, model card."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sora_cli import __version__
from sora_cli.adapter.adapter import Adapter
from sora_cli.adapter.card import shown_step
from sora_cli.adapter.classes import number_of_labels
from sora_cli.adapter.parts.kinds import by_kind
from sora_cli.adapter.survival import Survival
from sora_cli.core.errors import SoraError
from sora_cli.core.markdown import code, escaped
from sora_cli.merge.incoming import Incoming
from sora_cli.merge.plan import Plan
from sora_cli.merge.rounding import Storing, shown_survival
from sora_cli.model.files import MODEL_CONFIG, is_there
from sora_cli.model.new_tokens import size_with
from sora_cli.model.references import is_hub_id

MERGED_KEY = "sora_merged"
"""Key in config.json. Its value is a list with one entry for each merged adapter, in the order of
merging: {"adapter": digest, "method": name or null, "share": share of the update in the stored
weights, "noise": relative to the update}.
"""

_SUBCONFIGS = ("text_config", "decoder")


def merged_before(raw: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the entries of adapters merged into a model before, from its configuration."""
    entries = raw.get(MERGED_KEY)
    return [e for e in entries if isinstance(e, dict)] if isinstance(entries, list) else []


def check_not_merged(adapters: list[dict[str, Any]], source: str) -> None:
    """Refuse the last adapter of the list if an earlier entry is the same: dW would count twice."""
    *before, new = adapters
    if any(entry.get("adapter") == new["adapter"] for entry in before):
        raise SoraError(
            f"this adapter is already merged into {source}: it would count twice",
            where=f"{MODEL_CONFIG} there lists it under {MERGED_KEY}",
            hint="give the original base model with --base",
        )


def with_survival(config: Mapping[str, Any], survival: Survival) -> dict[str, Any]:
    """Add the measured share to the last adapter's entry in the configuration."""
    *before, last = config[MERGED_KEY]
    return {**config, MERGED_KEY: [*before, {**last, **survival.record()}]}


def merge_record(survival: Survival, dtype: str, storing: Storing) -> dict[str, Any]:
    """Return the content of `MERGE_RECORD`: the rounding, the total share, and each module's."""
    rounding: dict[str, Any] = {"dtype": dtype, "rounding": storing.rounding}
    if storing.rounding == "stochastic":
        rounding["seed"] = storing.seed
    return {**rounding, **survival.record(), "modules": survival.table()}


def merged_config(raw: Mapping[str, Any], new: Incoming, known: Any) -> dict[str, Any]:
    """Return the base's `config.json` with the adapter's labels.

    Args:
        raw: the parsed `config.json`.
        known: transformers' configuration object, read from the same file.
    """
    config = copy.deepcopy(dict(raw))
    labels = new.meta.labels
    number = number_of_labels(new.adapter)
    if labels:
        names = dict(enumerate(labels))
    elif number is not None and number != known.num_labels:
        names = {i: f"LABEL_{i}" for i in range(number)}
    else:
        names = known.id2label
    if names != known.id2label:
        config["id2label"] = {str(i): name for i, name in names.items()}
        config["label2id"] = {name: i for i, name in names.items()}
        # older files also hold the number, which id2label now decides
        config.pop("num_labels", None)
        config.pop("_num_labels", None)
    if new.meta.problem_type:
        config["problem_type"] = new.meta.problem_type
    return config


def grown_config(raw: Mapping[str, Any], adapter: Adapter, known: Any) -> dict[str, Any]:
    """Return a configuration whose vocabulary has room for the adapter's rows of new tokens.

    Args: see `merged_config`.
    """
    config, rows = copy.deepcopy(dict(raw)), adapter.rows
    if not rows:
        return config
    before = known.get_text_config().vocab_size
    after = size_with({path: own.indices for path, own in rows.items()}, before)
    if after > before:
        place = config["text_config"] if "vocab_size" in config.get("text_config", {}) else config
        place["vocab_size"] = after
    return config


def untied_config(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration with `tie_word_embeddings` false, also in its sub-configurations."""
    config = copy.deepcopy(dict(raw))
    config["tie_word_embeddings"] = False
    for name in _SUBCONFIGS:
        if isinstance(config.get(name), dict):
            config[name]["tie_word_embeddings"] = False
    return config


def config_in(dtype: str, raw: Mapping[str, Any]) -> dict[str, Any]:
    """Set the dtype that `from_pretrained` loads, in a configuration and its parts."""
    changed = {
        key: config_in(dtype, value) if isinstance(value, dict) and "dtype" in value else value
        for key, value in raw.items()
        if key != "torch_dtype"  # the older name of "dtype"
    }
    return {**changed, "dtype": dtype}


def model_card(
    new: Incoming, plan: Plan, *, base: str, class_name: str, dtype: str, survival: Survival
) -> str:
    """Return the merged model's README.md: base, adapter, measured share, code to load it.

    Args:
        base: the base model's name, as given by the user or the adapter.
    """
    method = new.meta.method or "LoRA, trained by another tool"
    adapter, known = new.adapter, new.meta.ranks
    ranks = adapter.stored_ranks
    live = [
        rank
        for paths in adapter.groups.values()
        if (rank := max(known.get(path, ranks[path]) for path in paths))
    ]
    lines = [
        *_front_matter(base),
        "# Merged model",
        "",
        f"A low-rank adapter merged into its base model by sora {__version__}: `W + B A` for each "
        "adapted layer, added in float32 and rounded once. Load it without the adapter.",
        "",
        f"- base model: {code(_public_name(base))}"
        + (f" @ {code(adapter.base.revision)}" if adapter.base.revision else ""),
        f"- class: `{class_name}`, {dtype}",
        f"- {escaped(shown_survival(survival, dtype))}",
        f"- method: {escaped(method)}",
        f"- adapted layers: {len(live)}" + (f", of rank {_range(live)}" if live else ""),
    ]
    for kind, parts in by_kind(adapter.parts):
        lines += kind.card_lines(parts)
    if new.meta.task:
        lines.append(f"- task: {escaped(new.meta.task)}")
    if new.meta.labels:
        lines.append(f"- labels: {', '.join(map(escaped, new.meta.labels))}")
    lines += [f"- then {shown_step(entry)}" for entry in new.meta.lineage]
    if plan.left_out:
        lines.append(f"- left out: {len(plan.left_out)} tensors of the base, unused by this class")
    return "\n".join([*lines, "", "```python", *_code(class_name), "```", ""])


def _public_name(base: str) -> str:
    """Return a model's name; of a local path only the last part."""
    return base if "://" in base or _on_hub(base) else Path(base).name


def _on_hub(base: str) -> bool:
    """Return True for OWNER/NAME on the Hub, unless a local directory has that name."""
    return "/" in base and is_hub_id(base) and not is_there(base)


def _front_matter(base: str) -> list[str]:
    known = [f"base_model: {base}"] if _on_hub(base) else []
    return ["---", "library_name: transformers", *known, "---", ""]


def _code(class_name: str) -> list[str]:
    return [
        f"from transformers import {class_name}",
        "",
        f'model = {class_name}.from_pretrained("THIS DIRECTORY")',
    ]


def _range(ranks: list[int]) -> str:
    low, high = min(ranks), max(ranks)
    return f"{low}" if low == high else f"{low} to {high}"
