"""Experiment: does `sora auto` keep its promises? Sizes are trained once, decisions replayed often.

`train` trains all sizes and stores their scores (hours), `replay` takes decisions on the stored
scores, and `synthetic` on made-up scores that just break the promise. The results are in
docs/results/auto.md. `answers`, `asked` and `label_noise` do so for promises about answers and
those with asked labels, see docs/results/few-rows.md.
"""
