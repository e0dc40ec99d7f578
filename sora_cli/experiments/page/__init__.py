"""The parts that HTML pages of runs are made of; which page shows what stands elsewhere."""
