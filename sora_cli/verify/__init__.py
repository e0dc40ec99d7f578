"""Verification that two adapters or models give the same outputs, and of certificates and methods.

Read `verification` first, then `effect` (how much of an adapter's effect is there) and `verdict`
(every limit with its reason). `self_check` compares a result with the model that wrote it;
`certificate` with `expected` and `scored` derives a certificate again; `contract` checks a method.
`served` tells whether a `server` uses an adapter.
"""
