"""diffusers' `save_lora_weights`, in the three spellings that it has had.

Each name begins with the model around the module: `unet.`, `transformer.`, `text_encoder.`,
`text_encoder_2.`. Then comes the module's path, and an ending: PEFT's `.lora_A.weight`;
`.lora.down.weight`, in text encoders `.lora_linear_layer.down.weight`; or the oldest, of attention
processors, `.processor.to_q_lora.down.weight`, where "to_out" stands for `to_out.0`, and in text
encoders "to_q" for `q_proj` (diffusers/utils/state_dict_utils.py).

The scaling of B A comes from PEFT's configuration of each model in the header
(`lora_adapter_metadata`). Without this configuration it is alpha / r, and 1 if no pair has an
`.alpha`. If then the ranks differ, or some alphas are missing, diffusers' own result depends on the
order of the tensors and on the version (utils/peft_utils.py: `get_peft_kwargs`), so such files are
refused.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

from sora_cli.adapter.foreign.contents import Contents, ForeignPair, Source, halves, scaled_pairs
from sora_cli.adapter.peft.config import PeftConfig, parse_config
from sora_cli.core.errors import SoraError

NAME = "diffusers"

_METADATA = "lora_adapter_metadata"
_PART = re.compile(
    r"(unet|transformer|transformer_2|text_encoder(?:_[23])?|prior|controlnet)\.(.+)"
)
_HALF = {"A": "a", "B": "b", "down": "a", "up": "b"}
_ENDING = re.compile(
    r"(?P<path>.+?)\.(?:lora_(?P<peft>[AB])|lora(?:_linear_layer)?\.(?P<plain>down|up)"
    r"|to_(?P<to>q|k|v|out)_lora\.(?P<old>down|up))\.weight"
)
_MORE = {
    "it is a DoRA, which also rescales every column of the base weight": "lora_magnitude_vector",
    "it also adds a bias": "lora_B.bias",
    "it is a LoKr, whose updates are Kronecker products": ".lokr_",
    "it is a LoHa, whose updates are elementwise products of low-rank matrices": ".hada_",
}


def read(source: Source) -> Contents | None:
    """Read a file of diffusers' layout; return None for another format."""
    if not any(_is_diffusers(key) for key in source.keys):
        return None
    pairs = scaled_pairs(source, halves(source, _split, _MORE))
    return Contents(NAME, _scaled(source, pairs), exact=True)


def _is_diffusers(key: str) -> bool:
    """Return true if a key is of this format, by its first word or the processors' spelling."""
    named = _PART.fullmatch(key)
    ending = _ENDING.fullmatch(key)
    return ending is not None and (named is not None or ending["to"] is not None)


def _split(key: str) -> tuple[str, str] | None:
    named = _PART.fullmatch(key)
    part, rest = ("unet", key) if named is None else (named[1], named[2])
    rest = rest.replace(".processor.", ".")  # the oldest files: layers inside attention processors
    if rest.endswith(".alpha"):
        return f"{part}|{rest.removesuffix('.alpha')}", "alpha"
    match = _ENDING.fullmatch(rest)
    if match is None:
        return None
    half = _HALF[match["peft"] or match["plain"] or match["old"]]
    last = "" if match["to"] is None else f".{_processor(match['to'], part)}"
    return f"{part}|{match['path']}{last}", half


def _processor(to: str, part: str) -> str:
    if part.startswith("text_encoder"):
        return f"{to}_proj"
    return "to_out.0" if to == "out" else f"to_{to}"


def _scaled(source: Source, pairs: list[ForeignPair]) -> tuple[ForeignPair, ...]:
    """Scale the pairs of each model by PEFT's configuration, if the header holds one."""
    configs = _configs(source, pairs)
    for part in dict.fromkeys(pair.part for pair in pairs if pair.part not in configs):
        _check_scaling_known(source, part, [pair for pair in pairs if pair.part == part])
    return tuple(
        replace(pair, scaling=configs[pair.part].scaling(pair.name))
        if pair.part in configs
        else pair
        for pair in pairs
    )


def _check_scaling_known(source: Source, part: str, pairs: list[ForeignPair]) -> None:
    """Refuse a model unless all of its pairs have an alpha, or none has and all ranks are equal."""
    with_alpha = sum(pair.alpha is not None for pair in pairs)
    ranks = {source.tensors.shape(pair.a)[:1] for pair in pairs}
    if with_alpha == len(pairs) or (not with_alpha and len(ranks) == 1):
        return
    what = "some pairs have an alpha and others none" if with_alpha else "the pairs differ in rank"
    raise SoraError(
        f"{what} in {part}, and the header does not say their scaling: versions of diffusers apply "
        "such files differently",
        where=source.where,
        hint="add an alpha to each pair; alpha = rank makes B A the whole update",
    )


def _configs(source: Source, pairs: list[ForeignPair]) -> dict[str, PeftConfig]:
    text = source.metadata.get(_METADATA)
    if not text:
        return {}
    where = f"{source.where}, {_METADATA}"
    try:
        raw = json.loads(text)
    except ValueError as error:
        raise SoraError(f"{_METADATA} in the header is not JSON: {error}",
                        where=source.where) from error  # fmt: skip
    if not isinstance(raw, dict):
        raise SoraError(f"{_METADATA} in the header is no configuration", where=source.where)
    configs = {}
    for part in dict.fromkeys(pair.part for pair in pairs):
        own: dict[str, Any] = {
            key.removeprefix(f"{part}."): value
            for key, value in raw.items()
            if key.startswith(f"{part}.")
        }
        if not own:
            continue
        names = [pair.name for pair in pairs if pair.part == part]
        config = parse_config({**own, "peft_type": "LORA", "target_modules": names}, where)
        config.prepare(names, where)
        configs[part] = config
    return configs
