"""The adapter directory and what is in it."""
