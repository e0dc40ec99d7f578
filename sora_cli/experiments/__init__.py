"""Many runs: paths, sweeps, comparisons."""
