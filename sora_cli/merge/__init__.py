"""Merging an adapter into a base model's files, and extracting one from a fine-tuned model."""
