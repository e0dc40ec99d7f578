"""`sora list`: the runs below a directory, from their records alone."""
