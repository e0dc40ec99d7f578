"""The frozen base model: references, files, loading, attention, memory savers.

Read `loading` first, then `references` (a path, package or Hub id becomes files), `files` and
`fingerprint` (do these weights belong to that adapter?). `attention`, `quantisation`,
`gradient_checkpointing` and `activation_offload` are one training switch each, with its checks;
`transformers_internals` holds all private names of transformers that this room needs.
"""
