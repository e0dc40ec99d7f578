"""A tolerated loss in, the smallest adapter that keeps it out: `sora auto`.

Read `plan` (which runs there are), `budget` (on how many rows), `maker` (the order of things: full
rank, screening, sizes), `stages` (how each is trained); the loop, the tests and the certificate are
in `sora_cli.search`.
"""
