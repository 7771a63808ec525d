"""NumPyro kernels: the border between NumPyro's driver and the pure core."""
