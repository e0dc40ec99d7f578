"""Programs that work on the project itself; no part of the package."""
