"""A trained model put to work: what it answers to rows without labels, and talks with it."""
