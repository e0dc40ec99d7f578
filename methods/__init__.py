"""The mathematics: adapter methods whose update is a sum of rank-one components.

Nothing here knows YAML, transformers or the command line. Read `base` first (the contract), then
one method (`lora`, `sora` with `proximal`, `adalora`, `cut`), its options in `configs`, and
`registry` (methods by name). `inject` wraps a model's layers in `layer`; `fused` and `siblings` are
their fast forward pass. `factors` and `decomposition` are the algebra of low-rank factors, `keep`
and `budgets` the rules for what a cut keeps, `grid` numbers of few bits, `updates` the updates that
are no plain pair of factors (DoRA, LoHa, LoKr, embeddings). `contract` checks a method for its own
tests.
"""
