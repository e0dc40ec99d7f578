"""Adapter directories: reading, writing, cutting, combining, exporting and describing them.

Read `reading` and `writing` first, then `directory` (an adapter in memory) and `metadata`
(`sora.json`). `peft/` is PEFT's format and its keys, `stored` the updates in a file that are no
plain LoRA. `apply` puts an adapter on a model, `pruning` and `dense` cut it, `combine` adds
several, `export` and `gguf_lora` write it for other programs. `card` writes the model card.
`consumers` says which program loads what, by the table in `programs`, and `serving_many` plans
a server for several adapters; `base_check` and `digest` say whether files still belong together.
"""
