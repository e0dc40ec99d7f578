"""The optimisation loop on transformers' Trainer."""
