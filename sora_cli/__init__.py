"""The `sora` command-line tool: recipes in; adapters, tables, pictures and JSON reports out."""

__version__ = "0.1.0"
