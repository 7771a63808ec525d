"""Leapfrog paths: what makes the acceptance of ``test_inner.py`` exact."""

import jax.numpy as jnp
import numpy as np
import pytest

from numpyro_rtk.core.inner import InnerState
from numpyro_rtk.core.mala import _leapfrog
from tests.oracles import SKEWED


@pytest.mark.parametrize("num_leapfrog", [1, 2, 3])
@pytest.mark.parametrize("dense", [False, True])
def test_a_path_leads_back_with_the_momentum_turned_round(num_leapfrog, dense, x64):
    target = SKEWED.target()
    scale = jnp.array([[0.7, 0.0], [0.5, 0.3]]) if dense else jnp.array([0.7, 0.9])
    x, momentum = jnp.array([0.6, -0.9]), jnp.array([-0.4, 1.3])

    def path(x, momentum):
        state = InnerState(x, target(x))
        nodes, _, end = _leapfrog(state, momentum, target, 0.9, scale, num_leapfrog)
        return nodes, end

    there, end = path(x, momentum)
    back, start = path(there[-1], -end)
    np.testing.assert_allclose(back, there[::-1], rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(start, -momentum, rtol=1e-10, atol=1e-10)
