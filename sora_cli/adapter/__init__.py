"""Adapter directories: reading, writing, cutting, combining, exporting and describing them."""
