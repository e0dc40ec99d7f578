"""The mathematics: adapter methods whose update is a sum of rank-one terms.

Nothing here knows YAML, transformers or the command line. Start at `methods.base` (the contract),
`methods.registry` (names to classes) and `methods.inject` (putting layers into a model).
"""
