"""Training of learned densities from samples."""
