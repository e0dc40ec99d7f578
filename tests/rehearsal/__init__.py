"""A device that is not the CPU, rehearsed on a CPU: tensors that only it may mix and read."""
