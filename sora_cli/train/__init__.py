"""The training loop, on transformers' Trainer.

Read `fit` first, then `trainer` and `callback` (a method's hooks in each step). `checkpoint/` makes
a resumed run equal to an undisturbed one, byte for byte on a CPU. `batches` orders the rows,
`optimizers` and `moments` hold AdamW and its variants, `compiled` and `kernels` are training
switches with their checks (`sameness`), `non_finite` and `diagnosis` stop a broken run and name its
cause, `log` writes the report.
"""
