"""Training of learned densities from samples."""

from numpyro_rtk.training.fit import fit

__all__ = ["fit"]
