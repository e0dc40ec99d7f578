"""Errors, console output, signals, processes, atomic files; imports no recipe and no model."""
