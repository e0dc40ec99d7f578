"""A corpus of adapters of all kinds, and what every verb makes of it: the proof of a rewrite.

    python -m tools.corpus make DIR
    python -m tools.corpus run DIR --out BEFORE.json
    python -m tools.corpus compare BEFORE.json AFTER.json

`kinds` lists the adapters (`own_kinds`, `peft_kinds`, `wrong_kinds` write them), `verbs` the command
lines, `record` runs them and digests what they write, `compare` prints the differences.
"""
