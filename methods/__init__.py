"""The mathematics: adapter methods whose update is a sum of rank-one components.

Nothing here knows YAML, transformers or the command line. Start at `methods.base` (the contract),
`methods.registry` (methods by name) and `methods.inject` (wraps a model's layers).
"""
