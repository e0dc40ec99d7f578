"""The parts of a merge: the base's files, names, a plan, blocks of tensors, and what is written."""
