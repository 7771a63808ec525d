"""The bridge: its fixed point, and the evidence from its terms."""

import jax.numpy as jnp
import jax.random as jr
import numpy as np

from numpyro_rtk.core.exchange.bridge import (
    bridge_terms,
    log_evidence_of,
    next_log_ratio,
)


def test_log_ratio_estimate_steps_to_the_log_ratio(key):
    """Normal increments with E[e^W] = e: of mean 1 -+ s**2 / 2, down and up."""
    n, sd, edges = 20_000, 1.3, 4
    keys = jr.split(key)
    down = 1.0 - sd**2 / 2 + sd * jr.normal(keys[0], (n, edges))
    up = 1.0 + sd**2 / 2 + sd * jr.normal(keys[1], (n, edges))
    estimate = jnp.zeros(edges)
    for _ in range(3):
        sums = [jnp.sum(t, axis=0) for t in bridge_terms(down, up, estimate[None])]
        estimate = next_log_ratio(estimate, jnp.full(edges, float(n)), *sums)
    # the bridge's standard error is below .012
    np.testing.assert_allclose(estimate, 1.0, atol=0.06)
    # whatever the estimate, the terms say the rest
    terms = bridge_terms(down, up, jnp.full((1, edges), 0.5))
    sums = jnp.stack([jnp.sum(term, axis=0) for term in terms])
    found = log_evidence_of(jnp.full(edges, 0.5), sums)
    np.testing.assert_allclose(found, 1.0 * edges, atol=0.06 * edges)


def test_an_edge_that_was_not_tried_keeps_its_estimate():
    estimate, nothing = jnp.array([0.3, -2.0]), jnp.zeros(2)
    after = next_log_ratio(estimate, nothing, nothing, nothing)
    np.testing.assert_array_equal(after, estimate)
