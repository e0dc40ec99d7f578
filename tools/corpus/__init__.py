"""A corpus of adapters of all kinds, and what every verb makes of it: the proof of a rewrite.

    python -m tools.corpus make DIR
    python -m tools.corpus run DIR --out BEFORE.json
    python -m tools.corpus compare BEFORE.json AFTER.json

Both records must come from one folder: a packed adapter names its base's place within compressed
texts. An older PEFT on PYTHONPATH adds kinds to a folder, under its version:
`make DIR --kinds 'peft-*/bert-*,peft-*/case-dora'`.

`kinds` lists the adapters, which `own_kinds`, `peft_kinds` and `wrong_kinds` write; `verbs` lists
the command lines, `record` runs them and digests their files, `process` keeps the kinds apart, and
`compare` prints the differences.
"""
