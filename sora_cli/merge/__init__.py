"""Merging an adapter into a base model's files, and extracting one from a fine-tuned model.

Read `merge` first, then `match` (each part of the adapter finds its tensor), `plan` (what is copied
and what is computed), `blocks` (the merged tensor, a block at a time) and `write`. `rounding`
measures how much of an update 16 bits keep, `to_gguf` merges into a GGUF file, `difference` and
`extract` go the other way.
"""
