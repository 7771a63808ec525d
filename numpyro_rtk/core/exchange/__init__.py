"""The replica exchange: ``sweep`` is one pass over all edges; the rest are its parts.

- ``replicas``: the state, and the plan that sweeps are given.
- ``local_move``: within a level. ``neighbours``: pairs of levels, as slices.
- ``modes``: jumps at level 0, from a mixture fitted to the population.
- ``bridge``: the evidence, from the log-weight increments of both directions.
"""
