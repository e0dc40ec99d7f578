"""The frozen base model: references, files, loading, attention, memory savers."""
