"""Checkpoints: writing, keeping, and resuming from them, byte for byte."""
