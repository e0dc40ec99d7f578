"""Errors, console output, signals, processes, atomic files; imports no recipe and no model.

Read `errors` first (`SoraError`, three lines) with `boundary` (where it becomes exit code 2).
`console`, `progress` and `verbosity` print; `table` and `figures` are the one table and the one
style of pictures. `atomic`, `lock` and `outputs` decide which files may be written, replaced or
deleted; `records` reads a command's own JSON; `interruption` turns signals into clean ends;
`versions` names a package that does not fit.
"""
