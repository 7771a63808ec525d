"""The paper's integrator by its own formulas; its noise is in ``test_inner.py``."""

import jax.numpy as jnp
import numpy as np
import pytest

from numpyro_rtk.core.inner import StepNoise
from numpyro_rtk.core.segment import Evaluation
from numpyro_rtk.core.uld import ULD, ULDState


@pytest.mark.parametrize("friction", [0.5, 2.0])
@pytest.mark.parametrize("step_size", [0.1, 1.5])
def test_the_unadjusted_step_solves_the_linear_equation(friction, step_size):
    """Under a constant score and without noise: du = (s - g u) dt, dz = u dt, by Euler.

    In 200,000 steps, whose error is of order 1e-5.
    """
    score, z, u = np.array([0.8, -0.3]), np.array([0.2, 1.0]), np.array([-0.5, 0.4])
    target = lambda x: Evaluation(jnp.dot(x, jnp.float32(score)), jnp.float32(score))
    first = jnp.float32(z)
    state = ULDState(first, jnp.float32(u), target(first))
    nothing = StepNoise(jnp.zeros((2, 2)), jnp.zeros(()))
    sampler = ULD(friction=friction).unadjusted()
    end, _ = sampler.step(nothing, state, target, jnp.float32(step_size), jnp.ones(2))
    num = 200_000
    for _ in range(num):
        z, u = (
            z + step_size / num * u,
            u + step_size / num * (score - friction * u),
        )
    np.testing.assert_allclose(end.position, z, atol=1e-4)
    np.testing.assert_allclose(end.velocity, u, atol=1e-4)
