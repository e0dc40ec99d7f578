"""The search for the smallest size that a test certifies.

Read `search.in_fixed_order` first (the loop: make, test, record), then `evidence` (the record of a
promise, `certificate.json`, and all that follows from its figures), then the code that makes sizes:
`cut` (cuts an adapter, or the difference of two models), `heal` (cuts an adapter and trains it on)
and the two makers of an `auto_search`: `experiments.auto.maker` cuts a checkpoint and trains it on,
and `verify.again_search` reads what was trained. A `promise` is tested on
`test_rows` by `statistics.drop_bound`, which takes the first `statistic` that measures the scores:
`differing_answers`, `asked_labels`, `right_or_wrong` or `any_metric`. `asked_search` is the search
that asks people for labels, and `ask_table` the file in which it does. `Statistic.smallest`
computes beforehand the smallest drop that the rows can certify, and `certifiable` how many rows a
promise takes. All sentences and tables of a promise are in `words`.
docs/explanation/certificate.md explains the mathematics.
"""
