"""Paths, sweeps and comparisons: experiments that consist of several runs."""
