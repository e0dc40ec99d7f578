"""Loading, checking and tokenising of a run's rows.

Read `loading` first (files, folders and the Hub, found by `source`), then `rows` (which rows train,
choose and are reported) and `places` (file and line of a row, for errors). `columns` guesses what
columns hold, `tokens` encodes texts, `overlap` finds rows that occur twice, `json_lines` and
`faults` find the first broken line of a file. `builtin/` is data that comes with the tool.
"""
