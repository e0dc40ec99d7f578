"""Tiny models of many architectures, made from configurations: what each needs beside the shape."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers

from tests.helpers_models import HIDDEN, LAYERS, SPREAD, VOCABULARY

CAUSAL = "causal-lm"
CLASSES = "sequence-classification"


@dataclass(frozen=True)
class Architecture:
    """One kind of model.

    Attributes:
        options: its configuration, beside `_SHAPE`.
        tasks: that it has a class for.
        refused: tasks that it has a class for and cannot do.
        whole: the class of a published model, if that has more than a decoder.
    """

    options: dict[str, Any] = field(default_factory=dict)
    tasks: tuple[str, ...] = (CAUSAL, CLASSES)
    refused: tuple[str, ...] = ()
    whole: str | None = None


_SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": 2 * HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": SPREAD,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
_GROUPED = {"num_key_value_heads": 1}
_HEADS = {"head_dim": 16, **_GROUPED}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_GPT = {"n_embd": HIDDEN, "n_layer": LAYERS, "n_head": 2, "n_positions": 64}
_T5 = {"d_model": HIDDEN, "d_kv": 16, "d_ff": 2 * HIDDEN, "num_layers": LAYERS, "num_heads": 2,
       "decoder_start_token_id": 0}  # fmt: skip
_STATE = {"state_size": 8, "conv_kernel": 4, "expand": 2}
_GATED_DELTA = {**_HEADS, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
                "linear_num_key_heads": 2, "linear_num_value_heads": 2,
                "layer_types": ["linear_attention", "full_attention"]}  # fmt: skip
# the last two of four layers take the keys and values of the first two
_PER_LAYER = {**_HEADS, "global_head_dim": 16, "sliding_window": 8, "num_hidden_layers": 4,
              "layer_types": ["sliding_attention", "full_attention"] * 2, "num_kv_shared_layers": 2,
              "hidden_size_per_layer_input": 8,
              "vocab_size_per_layer_input": VOCABULARY}  # fmt: skip
_IMAGES = {"hidden_size": 16, "intermediate_size": 32, "patch_size": 2}
_MAMBA = {"mamba_d_state": 8, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_expand": 2,
          "mamba_chunk_size": 8, "mamba_n_groups": 1}  # fmt: skip
_ENCODER = (CLASSES,)
_DECODER = (CAUSAL,)

ARCHITECTURES = {
    "albert": Architecture({"embedding_size": 16}, _ENCODER),
    "bamba": Architecture({**_GROUPED, **_MAMBA, "attn_layer_indices": [1]}, _DECODER),
    "bart": Architecture(
        {"d_model": HIDDEN, "encoder_layers": LAYERS, "decoder_layers": LAYERS,
         "encoder_attention_heads": 2, "decoder_attention_heads": 2,
         "encoder_ffn_dim": 2 * HIDDEN, "decoder_ffn_dim": 2 * HIDDEN, "init_std": SPREAD},
        _ENCODER,
    ),
    "bert": Architecture({}, _ENCODER),
    "bloom": Architecture({"n_layer": LAYERS, "n_head": 2}),
    "cohere": Architecture(_GROUPED, _DECODER),
    "deberta": Architecture(
        {"relative_attention": True, "pos_att_type": ["p2c", "c2p"],
         "pooler_hidden_size": HIDDEN}, _ENCODER,
    ),
    "deberta-v2": Architecture(
        {"relative_attention": True, "position_buckets": 8, "norm_rel_ebd": "layer_norm",
         "share_att_key": True, "pos_att_type": ["p2c", "c2p"], "type_vocab_size": 0,
         "pooler_hidden_size": HIDDEN}, _ENCODER,
    ),
    "deepseek_v3": Architecture(
        {"moe_intermediate_size": 16, "n_routed_experts": 4, "num_experts_per_tok": 2,
         "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "kv_lora_rank": 8,
         "q_lora_rank": 8, "qk_rope_head_dim": 8, "v_head_dim": 16, "qk_nope_head_dim": 8,
         "num_key_value_heads": 2},
    ),
    "distilbert": Architecture(
        {"dim": HIDDEN, "hidden_dim": 2 * HIDDEN, "n_layers": LAYERS, "n_heads": 2}, _ENCODER
    ),
    "electra": Architecture({"embedding_size": 16}, _ENCODER),
    "falcon": Architecture({"ffn_hidden_size": 2 * HIDDEN}),
    "falcon_h1": Architecture({**_HEADS, **_MAMBA, "mamba_d_ssm": 64}, _DECODER),
    "falcon_mamba": Architecture({**_STATE, "time_step_rank": 4}, _DECODER),
    "gemma2": Architecture({**_HEADS, "query_pre_attn_scalar": 16, "sliding_window": 8}),
    "gemma3_text": Architecture({**_HEADS, "query_pre_attn_scalar": 16, "sliding_window": 8}),
    "gemma4": Architecture(
        {"text_config": {**_SHAPE, **_PER_LAYER}, "audio_config": None,
         "vision_config": {**_IMAGES, "num_hidden_layers": 1, "num_attention_heads": 2,
                           "num_key_value_heads": 2, "head_dim": 8, "position_embedding_size": 16}},
        _DECODER, whole="Gemma4ForConditionalGeneration",
    ),
    "gemma4_text": Architecture(_PER_LAYER, _DECODER),
    "glm4": Architecture(_HEADS),
    "gpt2": Architecture(_GPT),
    "gpt_neo": Architecture({"num_layers": 2, "num_heads": 2,
                             "attention_types": [[["global", "local"], 1]], "window_size": 8}),
    "gpt_neox": Architecture(),
    "gpt_oss": Architecture(
        {**_HEADS, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8}
    ),
    "gptj": Architecture({**_GPT, "rotary_dim": 8}),
    "granite": Architecture(_GROUPED, _DECODER),
    "granitemoe": Architecture({**_GROUPED, "num_local_experts": 4}, _DECODER),
    "granitemoehybrid": Architecture(
        {**_GROUPED, **_MAMBA, "num_local_experts": 4, "shared_intermediate_size": 32,
         "layer_types": ["mamba", "attention"]}, _DECODER,
    ),
    "jamba": Architecture(
        {**_GROUPED, "num_experts": 2, "num_experts_per_tok": 1, "mamba_d_state": 8,
         "mamba_dt_rank": 4, "use_mamba_kernels": False, "attn_layer_period": 2,
         "attn_layer_offset": 1},
    ),
    "lfm2": Architecture(
        {**_GROUPED, "layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
        _DECODER,
    ),
    "llama": Architecture(_GROUPED),
    "longformer": Architecture({"attention_window": 8, "sep_token_id": 3}, _ENCODER),
    "mamba": Architecture({**_STATE, "time_step_rank": 4}, _DECODER),
    "mamba2": Architecture(
        {**_STATE, "head_dim": 16, "num_heads": 4, "n_groups": 1, "chunk_size": 8}, _DECODER
    ),
    "mistral": Architecture(_HEADS),
    "mixtral": Architecture({**_GROUPED, "num_local_experts": 4}),
    "modernbert": Architecture(
        {"cls_token_id": 2, "sep_token_id": 3, "local_attention": 8,
         "layer_types": ["full_attention", "sliding_attention"]}, _ENCODER,
    ),
    "mpt": Architecture({"d_model": HIDDEN, "n_heads": 2, "n_layers": LAYERS, "max_seq_len": 64}),
    "mt5": Architecture(_T5, _ENCODER),
    "nemotron_h": Architecture(
        {**_HEADS, "layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"],
         "ssm_state_size": 8, "mamba_num_heads": 4, "mamba_head_dim": 16, "n_groups": 1,
         "chunk_size": 8, "n_routed_experts": 4, "moe_intermediate_size": 16,
         "moe_shared_expert_intermediate_size": 16, "use_mamba_kernels": False}, _DECODER,
    ),
    "olmo2": Architecture(_GROUPED),
    "olmoe": Architecture({**_GROUPED, "num_experts": 4, "num_experts_per_tok": 2}, _DECODER),
    "opt": Architecture({"ffn_dim": 2 * HIDDEN, "word_embed_proj_dim": 16, "init_std": SPREAD}),
    "phi": Architecture({"partial_rotary_factor": 0.5}),
    "phi3": Architecture(_GROUPED),
    "qwen2": Architecture(_GROUPED),
    "qwen2_moe": Architecture(
        {**_GROUPED, **_EXPERTS, "shared_expert_intermediate_size": 16},
    ),
    "qwen3": Architecture(_HEADS),
    "qwen3_5": Architecture(
        {"text_config": {**_SHAPE, **_GATED_DELTA},
         "vision_config": {**_IMAGES, "depth": 1, "num_heads": 2, "out_hidden_size": HIDDEN,
                           "num_position_embeddings": 16}},
        _DECODER, whole="Qwen3_5ForConditionalGeneration",
    ),
    "qwen3_5_moe_text": Architecture(
        {**_GATED_DELTA, **_EXPERTS, "shared_expert_intermediate_size": 16}, _DECODER
    ),
    "qwen3_5_text": Architecture(_GATED_DELTA),
    "qwen3_moe": Architecture({**_HEADS, **_EXPERTS, "mlp_only_layers": [0]}),
    "qwen3_next": Architecture(
        {**_GATED_DELTA, **_EXPERTS, "shared_expert_intermediate_size": 16},
    ),
    "roberta": Architecture({"pad_token_id": 0, "type_vocab_size": 1}, _ENCODER),
    "rwkv": Architecture({"attention_hidden_size": HIDDEN, "context_length": 64}, _DECODER),
    "stablelm": Architecture(_GROUPED),
    "starcoder2": Architecture(_GROUPED),
    "t5": Architecture(_T5, _ENCODER),
    "xlnet": Architecture(
        {"d_model": HIDDEN, "n_layer": LAYERS, "n_head": 2, "d_inner": 2 * HIDDEN, "d_head": 16},
        _ENCODER, refused=_DECODER,
    ),
}  # fmt: skip
"""By transformers' model type."""


def options_of(model_type: str) -> dict[str, Any]:
    """The options of a tiny model's configuration."""
    options = ARCHITECTURES[model_type].options
    options = options if "text_config" in options else {**_SHAPE, **options}
    if model_type == "xlnet":
        del options["max_position_embeddings"]  # it refuses a limit
    return options


def tiny(model_type: str, task: str, *, seed: int = 0) -> Any:
    """The model of a task, in evaluation mode; the global random state is left as it was."""
    config = transformers.AutoConfig.for_model(model_type, **options_of(model_type))
    if (whole := ARCHITECTURES[model_type].whole) is not None:
        return _drawn(getattr(transformers, whole), config, seed)
    kind = (
        transformers.AutoModelForCausalLM
        if task == CAUSAL
        else transformers.AutoModelForSequenceClassification
    )
    return _drawn(kind.from_config, config, seed)


def _drawn(make: Callable[[Any], Any], config: Any, seed: int) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make(config).eval()
