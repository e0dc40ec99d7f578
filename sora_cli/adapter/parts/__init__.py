"""The parts of an adapter: what it holds for one place of its base model.

Read `part` first: what every part can do, and what a command may ask of it. `kinds` lists the kinds
in the order in which they claim the keys of a file; a new kind is a file here and a line there.
"""
