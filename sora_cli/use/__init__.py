"""Use of a trained model: answers to rows without labels, chat, text generation, a Modelfile.

Read `predictor` first (rows in, answers out), with `described` (the recipe that new rows are read
with) and `parts` (answers kept for the next call). `speaker` and `chat` talk.
"""
