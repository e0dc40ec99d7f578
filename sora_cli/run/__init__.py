"""One training run: prepare, train, score, save.

Read `prepare` first (data, model, adapters), then `runner` (set up and train, also for stages of a
path and sizes of `sora auto`), `evaluate` and `results`. `preflight` and `opening` check a
recipe and its directory before anything is loaded, `dry_run` shows what a run would do, `memory`
and `micro_batch` predict what fits, `rates` finds the learning rate, `trial` finds layers that
cannot have an adapter, `stored` reads a finished run back.
"""
