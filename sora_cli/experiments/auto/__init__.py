"""A tolerated loss in, the smallest adapter that keeps it out: `sora auto`.

Read `plan` (which runs there are, on which rows), `screening` (which sizes), `stages` (how each is
trained), `command` (the order of things), `conclusion` (what is written).
"""
