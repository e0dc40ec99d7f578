"""`sora auto`: find the smallest adapter that keeps a promise, and certify it.

Read `plan` (the runs), `budget` (the numbers of rows) and `maker` (trains at full rank, screens,
then trains and tests sizes). The loop, the tests and the certificate are in `sora_cli.search`.
"""
