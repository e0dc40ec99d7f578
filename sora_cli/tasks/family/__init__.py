"""The four sides of a task family: its rows, the model's head, its scores and its answers.

`tasks.base.Task` joins them. Read `rows.py` first.
"""
