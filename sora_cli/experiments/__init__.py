"""Paths, searches, sweeps and comparisons: experiments that consist of several runs.

`auto/` finds the smallest size in one run, `path/` trains stages from dense to sparse, `sweep/`
trains the runs of a file. `compare/` puts their reports side by side, `report/` shows one run as a
page, `listing/` lists the runs below a directory.
"""
