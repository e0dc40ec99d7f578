"""Shared parts of the HTML pages of `sora compare` and `sora report`."""
