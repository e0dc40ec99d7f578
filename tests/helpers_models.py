"""Tiny models made from configurations, seeded; each a few hundred kilobytes at most."""

from __future__ import annotations

from typing import Any

import torch
import transformers

VOCABULARY = 64
HIDDEN = 32
LAYERS = 2
SPREAD = 0.2
"""Standard deviation of the weights: activations near 1, so that float32 noise stays small."""


def tiny_bert(*, num_labels: int = 3, seed: int = 0, **options: Any) -> Any:
    """BertForSequenceClassification."""
    config = transformers.BertConfig(**_encoder(num_labels), **options)
    return _seeded(transformers.BertForSequenceClassification, config, seed)


def tiny_roberta(*, num_labels: int = 3, seed: int = 0, **options: Any) -> Any:
    """RobertaForSequenceClassification."""
    shape = {**_encoder(num_labels), "type_vocab_size": 1, "pad_token_id": 1}
    config = transformers.RobertaConfig(**shape, **options)
    return _seeded(transformers.RobertaForSequenceClassification, config, seed)


def tiny_deberta(*, num_labels: int = 3, seed: int = 0, **options: Any) -> Any:
    """DebertaV2ForSequenceClassification, set up as DeBERTa-v3: it has a pooler beside its head."""
    config = transformers.DebertaV2Config(
        **{**_encoder(num_labels), "type_vocab_size": 0},
        relative_attention=True,
        position_buckets=8,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        pos_att_type=["p2c", "c2p"],
        pooler_hidden_size=HIDDEN,
        **options,
    )
    return _seeded(transformers.DebertaV2ForSequenceClassification, config, seed)


def tiny_distilbert(*, num_labels: int = 3, seed: int = 0, **options: Any) -> Any:
    """DistilBertForSequenceClassification: it has a pre_classifier beside its head."""
    config = transformers.DistilBertConfig(
        vocab_size=VOCABULARY,
        dim=HIDDEN,
        hidden_dim=2 * HIDDEN,
        n_layers=LAYERS,
        n_heads=2,
        max_position_embeddings=64,
        num_labels=num_labels,
        initializer_range=SPREAD,
        **options,
    )
    return _seeded(transformers.DistilBertForSequenceClassification, config, seed)


def tiny_gpt2(*, num_labels: int | None = None, seed: int = 0, **options: Any) -> Any:
    """GPT2LMHeadModel (tied embeddings), or with labels GPT2ForSequenceClassification: Conv1D."""
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=64,
        n_embd=HIDDEN,
        n_layer=LAYERS,
        n_head=2,
        bos_token_id=1,
        eos_token_id=1,
        pad_token_id=0,
        initializer_range=SPREAD,
        **options,
    )
    return _decoder(config, transformers.GPT2ForSequenceClassification,
                    transformers.GPT2LMHeadModel, num_labels, seed)  # fmt: skip


def tiny_llama(
    *, tied: bool = False, num_labels: int | None = None, seed: int = 0, **options: Any
) -> Any:
    """LlamaForCausalLM, or with labels LlamaForSequenceClassification."""
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=2 * HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        pad_token_id=0,
        initializer_range=SPREAD,
        tie_word_embeddings=tied,
        **options,
    )
    return _decoder(config, transformers.LlamaForSequenceClassification,
                    transformers.LlamaForCausalLM, num_labels, seed)  # fmt: skip


def token_ids(rows: int = 4, length: int = 9, *, seed: int = 0) -> torch.Tensor:
    """Random token numbers (rows, length) that every tiny model takes, no padding among them."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, (rows, length), generator=generator)


def _encoder(num_labels: int) -> dict[str, Any]:
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 2,
        "intermediate_size": 2 * HIDDEN,
        "max_position_embeddings": 64,
        "num_labels": num_labels,
        "initializer_range": SPREAD,
    }


def _decoder(config: Any, classifier: Any, causal: Any, num_labels: int | None, seed: int) -> Any:
    if num_labels is None:
        return _seeded(causal, config, seed)
    config.num_labels = num_labels
    return _seeded(classifier, config, seed)


def _seeded(model_class: Any, config: Any, seed: int) -> Any:
    """The model in evaluation mode; the global random state is left as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return model_class(config).eval()


def tiny_t5(*, seed: int = 0, **options: Any) -> Any:
    """T5ForConditionalGeneration: encoder and decoder, embeddings tied."""
    config = transformers.T5Config(
        vocab_size=VOCABULARY,
        d_model=HIDDEN,
        d_kv=HIDDEN // 2,
        d_ff=2 * HIDDEN,
        num_layers=LAYERS,
        num_heads=2,
        pad_token_id=0,
        decoder_start_token_id=0,
        **options,
    )
    return _seeded(transformers.T5ForConditionalGeneration, config, seed)


def tiny_vit(*, num_labels: int = 3, seed: int = 0, **options: Any) -> Any:
    """ViTForImageClassification on 8 x 8 pictures of one channel."""
    config = transformers.ViTConfig(
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        intermediate_size=2 * HIDDEN,
        image_size=8,
        patch_size=4,
        num_channels=1,
        num_labels=num_labels,
        initializer_range=SPREAD,
        **options,
    )
    return _seeded(transformers.ViTForImageClassification, config, seed)


def tiny_bert_for(kind: str, *, seed: int = 0, **options: Any) -> Any:
    """BertFor..., such as "QuestionAnswering", "TokenClassification" or "MultipleChoice"."""
    labels = 3 if kind == "TokenClassification" else 2
    config = transformers.BertConfig(**_encoder(labels), **options)
    return _seeded(getattr(transformers, f"BertFor{kind}"), config, seed)


def tiny_bart(*, seed: int = 0, **options: Any) -> Any:
    """BartForConditionalGeneration: encoder and decoder, all embeddings tied."""
    config = transformers.BartConfig(
        vocab_size=VOCABULARY,
        d_model=HIDDEN,
        encoder_layers=LAYERS,
        decoder_layers=LAYERS,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=2 * HIDDEN,
        decoder_ffn_dim=2 * HIDDEN,
        max_position_embeddings=64,
        init_std=SPREAD,
        **options,
    )
    return _seeded(transformers.BartForConditionalGeneration, config, seed)


def tiny_clip(*, seed: int = 0, **options: Any) -> Any:
    """CLIPModel: a tower for texts and one for 8 x 8 pictures of one channel."""
    tower = {
        "hidden_size": HIDDEN,
        "intermediate_size": 2 * HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 2,
        "projection_dim": HIDDEN // 2,
        "initializer_factor": 4.0,  # else the towers give nearly the same for all inputs
    }
    config = transformers.CLIPConfig(
        text_config={**tower, "vocab_size": VOCABULARY, "max_position_embeddings": 32,
                     "bos_token_id": 1, "eos_token_id": VOCABULARY - 1, "pad_token_id": 0},
        vision_config={**tower, "image_size": 8, "patch_size": 4, "num_channels": 1},
        projection_dim=HIDDEN // 2,
        **options,
    )  # fmt: skip
    return _seeded(transformers.CLIPModel, config, seed)


def model_inputs(model: Any) -> dict[str, torch.Tensor]:
    """Fixed random inputs of the kind that a tiny model takes."""
    if model.config.model_type == "vit":
        return {"pixel_values": _pixels()}
    ids = token_ids()
    if model.config.model_type == "clip":
        ids[:, -1] = VOCABULARY - 1  # where the text's vector is taken from
        return {"input_ids": ids, "pixel_values": _pixels()}
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = token_ids(length=5, seed=1)
    return inputs


def _pixels() -> torch.Tensor:
    """(4, 1, 8, 8) numbers."""
    return torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
