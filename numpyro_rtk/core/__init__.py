"""The samplers, as pure functions of arrays and callables.

Nothing here knows NumPyro, networks or ArviZ: a target is a function from a position
``(dim,)`` to its log density and score, so that an exact mixture, a network and a
NumPyro potential are interchangeable. One position at a time throughout; ``jax.vmap``
for more.

- ``segment``: the reverse transition kernel of one segment and its Gaussian proposal;
  ``covariance``: roots of covariances.
- ``inner``, ``mala``, ``uld``, ``acceptance``: the inner samplers and what they share.
- ``annealed``: runs down and up the ladder, with their weights; ``metropolised``: the
  exact transition made of them; ``annealed_warmup``: what it runs with.
- ``exchange``, ``replicas``, ``neighbours``, ``local_move``, ``modes``, ``bridge``: the
  replica exchange: its sweeps, what they move, jumps between modes, and the evidence.
- ``warmup``: its warm-up, in order: ``pilot``, ``population`` (with ``resampling`` and
  ``curvature``), ``start``, ``windows``.
- ``settings``: what that tunes: ``levels``, ``proposals``, ``kinds`` of exchange, from a
  ``tally`` of sweeps.
- ``adapt``: step sizes, and the frame of ordinary sites.
"""
