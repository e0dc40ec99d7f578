"""How far a smaller adapter may be worse: bounds, tests in a fixed order, what rows can carry.

Read `bounds.drop_bound` (one comparison), `sequence.in_fixed_order` (several sizes) and `carry`
(before anything is trained). The mathematics is explained in docs/explanation/certificate.md.
"""
