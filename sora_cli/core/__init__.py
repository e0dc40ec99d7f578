"""Errors, console, words, signals, processes, atomic files: knows neither recipe nor model."""
