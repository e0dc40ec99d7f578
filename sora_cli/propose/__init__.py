"""A recipe for data that has none: what the columns hold, the task, and values by rules."""
