"""Recipes: reading YAML, combining files and overrides, and validating the result.

Read `load` first, then `recipe` (all keys, with their descriptions). `layers` combines files and
overrides, `yaml_lines` keeps the line of every value, `open_blocks` validates the blocks of methods
and task families (`families` lists these), `reading` says which keys a command reads that does not
train. `auto`, `schedule`, `start` and `output` are blocks of their own.
"""
