"""Tests of `sora_cli.propose`."""
