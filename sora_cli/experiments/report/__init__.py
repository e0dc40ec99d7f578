"""One run on a page: what its directory holds, for people who were not there."""
