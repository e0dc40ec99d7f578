"""`sora auto`: find the smallest adapter that keeps a promise, and certify it.

Read `plan` (the runs), `budget` (the numbers of rows), `searching` (the order of the parts) and
`maker` (trains at full rank, scores cuts, heals and tests sizes). The loop, the tests and the
certificate are in `sora_cli.search`.
"""
