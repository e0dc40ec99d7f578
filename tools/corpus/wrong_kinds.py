"""Adapters that are refused: PEFT's other kinds, odd options, and damaged files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftType, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from safetensors.torch import load_file, save_file

from sora_cli.adapter.directory import write_adapter
from tests.helpers_adapters import adapt, fill_peft, save_backbone
from tests.helpers_models import tiny_bert, tiny_llama
from tools.corpus.own_kinds import Make, sort_sets

TARGETS = ["q_proj", "v_proj"]
READ = {"LORA", "ADALORA", "LOHA", "LOKR"}
CONFIGS: dict[str, Any] = {
    PeftType(kind).value: made for kind, made in PEFT_TYPE_TO_CONFIG_MAPPING.items()
}
"""PEFT's name of a kind -> its class of configurations."""
_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
Tensors = dict[str, torch.Tensor]

VIRTUAL = {"num_virtual_tokens": 4, "task_type": "CAUSAL_LM"}
_OPTIONS: dict[str, dict[str, Any]] = {
    "PROMPT_TUNING": VIRTUAL,
    "P_TUNING": VIRTUAL,
    "PREFIX_TUNING": VIRTUAL,
    "MULTITASK_PROMPT_TUNING": {**VIRTUAL, "num_tasks": 2},
    "IA3": {"target_modules": [*TARGETS, "down_proj"], "feedforward_modules": ["down_proj"]},
    "LN_TUNING": {"target_modules": ["norm"]},
    "TRAINABLE_TOKENS": {"target_modules": ["embed_tokens"], "token_indices": [3, 4]},
    "BOFT": {"target_modules": TARGETS, "boft_block_size": 4},
    "OFT": {"target_modules": TARGETS, "oft_block_size": 4},
    "VERA": {"target_modules": ["q_proj", "o_proj"], "r": 4},
    "VBLORA": {"target_modules": TARGETS, "vector_length": 16, "num_vectors": 8, "topk": 2},
    "FOURIERFT": {"target_modules": TARGETS, "n_frequency": 8},
}


def _of_peft(kind: str, folder: Path) -> None:
    """Write an adapter of another kind, by PEFT; only its configuration if PEFT needs more."""
    model = tiny_llama()
    model.save_pretrained(folder / "base")
    base = type(model).from_pretrained(folder / "base")
    options = _OPTIONS.get(kind, {"target_modules": TARGETS})
    try:
        tuned: Any = get_peft_model(base, CONFIGS[kind](**options))
        tuned.save_pretrained(folder / "adapter")
    except Exception:  # each kind has its own demands, and its name alone is refused
        shutil.rmtree(folder / "adapter", ignore_errors=True)
        _lora(folder)
        _set(folder / "adapter", peft_type=kind)


def _lora(folder: Path, **options: Any) -> None:
    model = tiny_llama()
    model.save_pretrained(folder / "base")
    base = type(model).from_pretrained(folder / "base")
    config = LoraConfig(r=4, target_modules=TARGETS, task_type="CAUSAL_LM", **options)
    fill_peft(get_peft_model(base, config)).save_pretrained(folder / "adapter")
    sort_sets(folder)


def _with(options: dict[str, Any], folder: Path) -> None:
    """Write a LoRA whose configuration says more, or other things."""
    _lora(folder)
    _set(folder / "adapter", **options)


def _set(adapter: Path, **options: Any) -> None:
    file = adapter / _CONFIG
    config = {**json.loads(file.read_text(encoding="utf-8")), **options}
    file.write_text(json.dumps(config, indent=2), encoding="utf-8")


def _tensors(change: Callable[[Tensors], object], folder: Path) -> None:
    """Write a LoRA whose tensors are changed."""
    _lora(folder)
    file = folder / "adapter" / _WEIGHTS
    tensors = load_file(file)
    change(tensors)
    save_file({k: t.contiguous() for k, t in tensors.items()}, file, {"format": "pt"})


def _files(change: Callable[[Path], object], folder: Path) -> None:
    """Write a LoRA whose files are changed."""
    _lora(folder)
    change(folder / "adapter")


def _ours(change: Callable[[dict[str, Any]], object], folder: Path) -> None:
    """Write an adapter of ours whose sora.json is changed."""
    model = tiny_bert()
    base = save_backbone(model, folder / "base")
    head = ("bert.pooler", "classifier")
    write_adapter(folder / "adapter", adapt(model, base, head=head, ranks="mixed"))
    file = folder / "adapter" / "sora.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    change(content)
    file.write_text(json.dumps(content), encoding="utf-8")


def _cut(name: str, share: float, adapter: Path) -> None:
    content = (adapter / name).read_bytes()
    (adapter / name).write_bytes(content[: int(len(content) * share)])


def _rename(old: str, new: str, tensors: Tensors) -> None:
    tensors.update({key.replace(old, new): tensors.pop(key) for key in list(tensors)})


def _fill(value: float, tensors: Tensors) -> None:
    tensors[min(tensors)][0, 0] = value


def _put(key: str, tensors: Tensors) -> None:
    tensors[key] = torch.zeros(4, 32)


def _turn(tensors: Tensors) -> None:
    tensors[min(tensors)] = tensors[min(tensors)].T


def _as(dtype: torch.dtype, tensors: Tensors) -> None:
    tensors.update({key: tensor.to(dtype) for key, tensor in tensors.items()})


def _pickle(adapter: Path) -> None:
    (adapter / _WEIGHTS).rename(adapter / "adapter_model.bin")


_PREFIX = "base_model.model."
_EMBEDDING = f"{_PREFIX}model.embed_tokens"
_LAYER = f"{_PREFIX}model.layers.0.self_attn"
OPTIONS: dict[str, dict[str, Any]] = {
    "layer_replication": {"layer_replication": [[0, 1]]},
    "lora_bias": {"lora_bias": True},
    "alora": {"alora_invocation_tokens": [3]},
    "qalora": {"use_qalora": True},
    "pissa": {"init_lora_weights": "pissa"},
    "init-false": {"init_lora_weights": False},
    "dora-without-magnitudes": {"use_dora": True},
    "unknown-option": {"use_something_new": True},
    "unknown-bias": {"bias": "some"},
    "no-type": {"peft_type": None},
    "another-type": {"peft_type": "NEWLORA"},
    "rank-zero": {"r": 0},
    "rank-wrong": {"r": 3},
    "rank-text": {"r": "4"},
    "alpha-zero": {"lora_alpha": 0},
    "alpha-pattern-odd": {"alpha_pattern": {"q_proj": 2, "nothing": 3, "self_attn.q_proj": 4}},
    "rank-pattern-wrong": {"rank_pattern": {"q_proj": 7}},
    "pattern-no-expression": {"rank_pattern": {"(q_proj": 7}},
    "targets-none": {"target_modules": None},
    "targets-too-few": {"target_modules": ["q_proj"]},
    "excluded": {"exclude_modules": ["q_proj"]},
    "to-save-adapted": {"modules_to_save": ["self_attn"]},
    "to-save-absent": {"modules_to_save": ["lm_head"]},
    "base-gone": {"base_model_name_or_path": "/nowhere/base"},
    "base-unknown": {"base_model_name_or_path": None},
    "tokens-without-rows": {"trainable_token_indices": [3, 4]},
    "before-0.19": {"peft_version": "0.13.2"},
}
TENSORS: dict[str, Callable[[Tensors], object]] = {
    "nan": partial(_fill, float("nan")),
    "infinity": partial(_fill, float("inf")),
    "huge": partial(_fill, 3e38),
    "missing-half": lambda t: t.pop(f"{_LAYER}.q_proj.lora_B.weight"),
    "missing-module": lambda t: [t.pop(key) for key in list(t) if ".layers.0." in key],
    "none": lambda t: t.clear(),
    "turned": _turn,
    "other-prefix": partial(_rename, _PREFIX, "model."),
    "other-layer": partial(_rename, ".layers.1.", ".layers.7."),
    "key-unknown": partial(_put, f"{_LAYER}.q_proj.weight"),
    "key-bias": partial(_put, f"{_LAYER}.q_proj.lora_B.bias"),
    "key-magnitude": partial(_put, f"{_LAYER}.q_proj.lora_magnitude_vector"),
    "key-tokens": partial(_put, f"{_EMBEDDING}.token_adapter.trainable_tokens_delta"),
    "key-with-slash": partial(_put, f"{_PREFIX}../x.lora_A.weight"),
    "integers": partial(_as, torch.int32),
    "float64": partial(_as, torch.float64),
    "float8": partial(_as, torch.float8_e4m3fn),
    "all-zero": lambda t: t.update({key: torch.zeros_like(x) for key, x in t.items()}),
}  # fmt: skip
FILES: dict[str, Callable[[Path], object]] = {
    "truncated": partial(_cut, _WEIGHTS, 0.7),
    "truncated-header": partial(_cut, _WEIGHTS, 0.01),
    "truncated-config": partial(_cut, _CONFIG, 0.5),
    "empty-weights": partial(_cut, _WEIGHTS, 0),
    "no-weights": lambda a: (a / _WEIGHTS).unlink(),
    "no-config": lambda a: (a / _CONFIG).unlink(),
    "pickle": _pickle,
}
OURS: dict[str, Callable[[dict[str, Any]], object]] = {
    "sora-ranks": lambda c: c["ranks"].update({"nothing.here": 3}),
    "sora-name": lambda c: c["ranks"].update({"../up": 3}),
    "sora-type": lambda c: c.update({"ranks": 3}),
    "sora-fingerprint": lambda c: c["base"].update({"fingerprint": "0" * 64}),
    "sora-labels": lambda c: c.update({"labels": ["one"]}),
}
DAMAGED: dict[str, Make] = {
    **{name: partial(_with, options) for name, options in OPTIONS.items()},
    **{name: partial(_tensors, change) for name, change in TENSORS.items()},
    **{name: partial(_files, change) for name, change in FILES.items()},
    **{name: partial(_ours, change) for name, change in OURS.items()},
}
REFUSED: dict[str, Make] = {
    kind.lower(): partial(_of_peft, kind) for kind in CONFIGS if kind not in READ
}
