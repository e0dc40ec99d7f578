"""One training run: prepare, train, score, save."""
