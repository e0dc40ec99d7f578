"""The search for the smallest size that a test certifies.

Read `search.in_fixed_order` first (the loop: make, test, record), then the code that makes sizes:
`cut` (cuts an adapter, or the difference of two models), `heal` (cuts an adapter and trains it on)
and `experiments.auto.maker` (cuts a checkpoint and trains it on). A `promise` is tested on `rows`
by `bounds.drop_bound`; `certifiable` computes beforehand the smallest drop that the rows can
certify. docs/explanation/certificate.md explains the mathematics.
"""
