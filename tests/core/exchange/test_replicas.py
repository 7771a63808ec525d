"""Random numbers of sweeps."""

import jax
import jax.numpy as jnp
import numpy as np

from numpyro_rtk.core.exchange.replicas import ExchangePlan, draw_sweeps
from numpyro_rtk.core.segment import Segment
from numpyro_rtk.core.uld import ULD


def test_random_numbers_of_different_uses_are_independent(key):
    """n = 4,000 sweeps of one edge: correlations of standard error n**-.5; z = 5."""
    n, shift = 4000, jnp.zeros((1, 1))
    edges = Segment(*[shift[:, 0]] * 4, shift, shift, shift, shift[:, 0])
    plan = ExchangePlan(None, edges, shift[:, 0], shift, shift[:, 0])
    noise = draw_sweeps(key, plan, ULD(), n, num_steps=1)
    columns = [
        np.asarray(leaf).reshape(n, -1) for leaf in jax.tree.leaves(noise._asdict())
    ]
    rows = np.concatenate(columns, axis=1).T
    # three chains of a start, two normals and a uniform; a top, two ways, two decisions;
    # a jump's normal and two decisions
    assert len(rows) == 3 * 4 + 1 + 2 + 2 + 3
    off = np.corrcoef(rows)[np.triu_indices(len(rows), 1)]
    assert np.all(np.abs(off) < 5.0 / np.sqrt(n)), off
