"""Warm-up: pure updates of NamedTuples, frozen once the draws count.

- ``adapt``: step sizes, and the frame of ordinary sites: for every kernel.
- ``annealed``: of the annealed kernels, whole.
- ``exchange``: of the replica exchange, what it is given and what it tunes; in order:
  ``pilot`` (the likelihood's variance), ``population`` (with ``resampling``), ``start``,
  ``windows``.
- ``settings``: what a window's ``tally`` becomes: ``levels``, ``proposals``, ``kinds``.
"""
