"""Bounds of how much worse a smaller adapter is, tests in a fixed order, what rows can carry.

Read `bounds.drop_bound` (one comparison), `sequence.in_fixed_order` (several sizes) and `carry`
(before anything is trained). The mathematics is explained in docs/explanation/certificate.md.
"""
