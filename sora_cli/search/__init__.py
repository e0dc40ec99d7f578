"""The smallest size that a test certifies.

Read `search.in_fixed_order` (the loop: make, test, record), then its makers: `cut` (an adapter, or
a model's difference), `heal` (an adapter that is cut and trained on), and `experiments.auto.maker`
(a checkpoint that is). What is tested is a `promise` on `rows`; `bounds.drop_bound` tests it, and
`certifiable` knows before how small a loss it can certify. The mathematics is explained in
docs/explanation/certificate.md.
"""
