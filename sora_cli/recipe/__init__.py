"""Recipes: reading YAML, combining files and overrides, and validating the result."""
