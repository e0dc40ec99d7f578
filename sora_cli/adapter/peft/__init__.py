"""PEFT's format: keys, configuration, patterns, targets."""
