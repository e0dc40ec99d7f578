"""The parts of an adapter: its content for each place of its base model.

Read `part` first: the abilities of every part, and the questions of commands to it. `kinds` lists
the kinds in the order in which they claim the keys of a file; a new kind is a file and a line.
"""
