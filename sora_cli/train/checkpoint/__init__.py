"""Checkpoints: what a run stores, when, and how a resumed run gets it back, byte for byte."""
