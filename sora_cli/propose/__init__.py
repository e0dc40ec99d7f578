"""Propose a recipe for data: look at the columns, choose the task family, set values by rules.

Read `proposal` first, which puts it together: `matching` and `roles` choose the family and its
columns, `rules` and `usual` set every number with its source, `text` writes the file, `lines`
prints the reasons.
"""
