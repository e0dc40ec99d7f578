"""Tests of `sora_cli.run.propose`."""
