"""The samplers, as pure functions of arrays and callables.

Nothing here knows NumPyro, networks or ArviZ: a target is a function from a position
``(dim,)`` to its log density and score, so that an exact mixture, a network and a
NumPyro potential are interchangeable. One position at a time throughout; ``jax.vmap``
for more.

- ``segment``: the reverse transition kernel of one segment and its Gaussian proposal;
  ``covariance``, ``curvature``: roots of covariances, and what scores say of them.
- ``inner``, ``mala``, ``uld``, ``acceptance``: the inner samplers and what they share.
- ``annealed``: runs down and up the ladder, with their weights; ``metropolised``: the
  exact transition made of them; ``multistep``: the deterministic predictor.
- ``exchange``: replicas of all levels, exchanged between neighbours.
- ``warmup``: everything that is tuned before the draws count, for every kernel.
"""
