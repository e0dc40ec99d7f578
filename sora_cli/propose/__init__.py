"""Propose a recipe for data: look at the columns, choose the task family, set values by rules."""
