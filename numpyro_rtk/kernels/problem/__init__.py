"""A NumPyro model as a problem of the core: ``problem.Problem``; the rest are its parts.

- ``runs``: all runs of the user's model. ``noted``: what the first one tells, with
  ``messages`` (NumPyro's own) and ``refusals``.
- ``alone``, ``border``: a density by itself is a model with one site, and what a draw is
  to the user.
- ``flat``: all sites in one vector. ``learned``, ``ordinary``: its two kinds of sites.
- ``coupling``, ``dependence``: priors that depend on other sites.
- ``bound``: what a problem is for given arguments.
- ``rows``, ``alignment``: independent rows of a plate.
- ``terms``: the log density term by term. ``further_out``: how far out in its prior.
"""
