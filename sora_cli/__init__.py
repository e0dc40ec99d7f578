"""The `sora` command-line tool: recipes in; adapters, tables, pictures and JSON reports out."""

from pathlib import Path

__version__ = "0.1.0"

PACKAGE = Path(__file__).resolve().parent
"""The folder of this package; its parent is a checkout, or where packages are installed."""
