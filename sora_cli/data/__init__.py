"""Rows, and what turns them into a model's inputs."""
