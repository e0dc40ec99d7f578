"""The recipe, from YAML to a validated object."""
