"""Adapter files of other programs, recognised by their keys and read as if they were PEFT's."""
