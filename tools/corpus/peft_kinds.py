"""Adapters that PEFT writes, of the version that is installed: those that can be read."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import peft
import torch
from peft import AdaLoraConfig, LoHaConfig, get_peft_model

from tests.architectures import CAUSAL, tiny
from tests.helpers_adapters import fill_peft
from tests.helpers_chat import chat_tokenizer, write_chat_recipe
from tests.helpers_models import tiny_bert, tiny_gpt2, tiny_llama, tiny_t5, tiny_vit
from tests.interop import test_experts, test_peft_base_weights
from tests.interop.test_peft import PEFT_OPTIONS
from tests.interop.test_peft_kinds import CASES, LLAMA, Case, save
from tools.corpus.own_kinds import STEPS, Make, keep_recipe

BERT = ["query", "value", "output.dense", "intermediate.dense"]
CLASSES: dict[str, Any] = {"task_type": "SEQ_CLS"}
CAUSAL_LM: dict[str, Any] = {"task_type": "CAUSAL_LM"}


def _adalora(rows: int, folder: Path) -> None:
    """Write an AdaLoRA whose modules have lost components, one of them all.

    Args:
        rows: components in the first module.
    """
    model = tiny_llama()
    model.save_pretrained(folder / "base")
    base = type(model).from_pretrained(folder / "base")
    options: dict[str, Any] = {"init_r": 6, "target_r": 4, "lora_alpha": 9, "total_step": 10}
    config = AdaLoraConfig(target_modules=LLAMA, **CAUSAL_LM, **options)
    tuned: Any = get_peft_model(base, config)
    fill_peft(tuned)
    generator = torch.Generator().manual_seed(2)
    names = [name for name, _ in tuned.base_model.model.named_parameters() if "lora_E" in name]
    kept = {name: (torch.rand(6, generator=generator) < 0.6).tolist() for name in names}
    kept[names[0]] = [number < rows for number in range(6)]
    if rows < 6:  # as the allocator does at its end
        tuned.base_model.resize_modules_by_rank_pattern(kept, "default")
        tuned.peft_config["default"].rank_pattern = kept
    tuned.save_pretrained(folder / "adapter")


def _saved(case: Case, shard: str | None, folder: Path) -> None:
    """Write a case of the tests; its base in shards of a size."""
    save(case, folder)
    if shard:
        model = case.make()
        (folder / "base" / "model.safetensors").unlink()
        model.save_pretrained(folder / "base", max_shard_size=shard)


def _cast(dtype: torch.dtype, case: Case, folder: Path) -> None:
    """Write base and adapter in another number format."""

    def make() -> Any:
        return case.make().to(dtype)

    model = make()
    model.save_pretrained(folder / "base")
    base = type(model).from_pretrained(folder / "base", dtype=dtype)
    config = case.config(**{"r": 4, **case.options})
    fill_peft(get_peft_model(base, config, autocast_adapter_dtype=False)).save_pretrained(
        folder / "adapter"
    )


def _trainable(tied: bool, options: dict[str, Any], folder: Path) -> None:
    """Write an adapter of a base model with a tokenizer, and a recipe that trains it further."""
    recipe = write_chat_recipe(folder, training=STEPS)
    save(Case(lambda: tiny_llama(tied=tied, eos_token_id=3, bos_token_id=2), options), folder)
    chat_tokenizer().save_pretrained(folder / "base")
    keep_recipe(folder, recipe)


def _experts(kind: str, folder: Path) -> None:
    test_experts.make(kind, folder)


def _experts_on_layers(kind: str, folder: Path) -> None:
    """Write an adapter on the attention of a mixture, whose experts stay as they are."""
    case = Case(lambda: tiny(kind, CAUSAL), {"target_modules": ["q_proj", "v_proj"], **CAUSAL_LM})
    save(case, folder)


def _base_weights(targets: str, options: dict[str, Any], folder: Path) -> None:
    test_peft_base_weights.made(folder, targets, **options)


def _case(make: Callable[[], Any], options: dict[str, Any], **more: Any) -> Make:
    return partial(_saved, Case(make, options, **more), None)


def _lora(**options: Any) -> Make:
    return _case(tiny_llama, {"target_modules": LLAMA, **CAUSAL_LM, **options})


_LORA = Case(tiny_llama, {"target_modules": LLAMA, **CAUSAL_LM})
_TIED_HEAD = {"target_modules": ["lm_head", "q_proj"], **CAUSAL_LM}

KINDS: dict[str, Make] = {
    **{f"case-{name}": partial(_saved, case, None) for name, case in CASES.items()},
    **{f"bert-{name}": _case(tiny_bert, {"target_modules": BERT, **CLASSES, **options})
       for name, options in PEFT_OPTIONS.items()},
    "targets-all": _lora(target_modules="all-linear"),
    "targets-expression": _lora(target_modules=r".*\.1\.self_attn\.[qk]_proj"),
    "targets-layers": _lora(layers_to_transform=[1], layers_pattern="layers"),
    "targets-excluded": _lora(exclude_modules=r".*\.0\..*"),
    "patterns-llama": _lora(rank_pattern={"q_proj": 2, r"layers\.1\.mlp\.down_proj": 7},
                            alpha_pattern={"v_proj": 3}, lora_alpha=16, use_rslora=True),
    "modules-to-save": _lora(modules_to_save=["lm_head"]),
    "modules-to-save-two": _lora(modules_to_save=["embed_tokens", "norm"]),
    "modules-to-save-tied": _case(lambda: tiny_llama(tied=True),
                                  {"target_modules": LLAMA, "modules_to_save": ["lm_head"],
                                   **CAUSAL_LM}),
    "gpt2": _case(tiny_gpt2, {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True,
                              **CAUSAL_LM}),
    "gpt2-bias": _case(tiny_gpt2, {"target_modules": ["c_attn"], "fan_in_fan_out": True,
                                   "bias": "all", **CAUSAL_LM}),
    "t5": _case(tiny_t5, {"target_modules": ["q", "v", "wo"], "task_type": "SEQ_2_SEQ_LM"}),
    "t5-shared": _case(tiny_t5, {"target_modules": ["q", "shared"], "task_type": "SEQ_2_SEQ_LM"}),
    "vit-bias": _case(tiny_vit, {"target_modules": ["q_proj"], "bias": "lora_only",
                                 "modules_to_save": ["classifier"]}),
    "tied-head": _case(lambda: tiny_llama(tied=True), _TIED_HEAD),
    "loha-expression": _case(tiny_bert, {"target_modules": ".*query", **CLASSES},
                             config=LoHaConfig),
    "bfloat16": partial(_cast, torch.bfloat16, _LORA),
    "float16": partial(_cast, torch.float16, _LORA),
    "bfloat16-dora": partial(_cast, torch.bfloat16, CASES["dora"]),
    "sharded": partial(_saved, _LORA, "20kB"),
    "sharded-embedding": partial(_saved, CASES["embedding"], "20kB"),
    "adalora": partial(_adalora, 6),
    "adalora-cut": partial(_adalora, 3),
    "adalora-dead": partial(_adalora, 0),
    **{f"experts-{kind}": partial(_experts, kind) for kind in test_experts.TARGETS},
    **{f"attention-{kind}": partial(_experts_on_layers, kind)
       for kind in ("mixtral", "qwen3_moe", "olmoe")},
    **{f"base-weights-{targets}{'-tied' * tied}{'-same' * (not change)}":
       partial(_base_weights, targets, {"tied": tied, "change": change})
       for targets in test_peft_base_weights.TARGETS for tied in (False, True)
       for change in (0.05, 0)},
    "base-weights-dora": partial(_base_weights, "embed_tokens", {"use_dora": True}),
    "chat": partial(_trainable, True, {"target_modules": LLAMA, **CAUSAL_LM}),
    "chat-rslora": partial(_trainable, True, {"target_modules": LLAMA, "use_rslora": True,
                                              "lora_alpha": 5, **CAUSAL_LM}),
    "chat-tokens": partial(_trainable, True, {"target_modules": LLAMA, **CAUSAL_LM,
                                              "trainable_token_indices": [3, 4, 9]}),
    "chat-dora": partial(_trainable, False, {"target_modules": LLAMA, "use_dora": True,
                                             **CAUSAL_LM}),
}  # fmt: skip


VERSION = peft.__version__
