"""numpyro_rtk."""
