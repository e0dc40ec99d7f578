"""The experiment on `sora auto`: candidates trained once, their scores stored, decisions replayed.

`train` trains and stores (hours), `replay` decides on the stored scores, and `synthetic` on scores
made so that the promise is just broken. docs/results/auto.md says what they gave.
"""
