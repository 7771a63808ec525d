"""Random numbers of particles that go down a level."""

import jax.numpy as jnp
import numpy as np

from numpyro_rtk.core.exchange.local_move import ParticleNoise
from numpyro_rtk.core.mala import MALA


def test_random_numbers_of_different_uses_are_independent(key):
    """n = 4,000 particles: correlations of standard error n**-.5; z = 5."""
    n = 4000
    noise = ParticleNoise.draw(key, MALA(), (n,), 1, jnp.float32)
    # one uniform of resampling for all; those of many populations are drawn alike
    many = ParticleNoise.draw(key, MALA(), (n, 1), 1, jnp.float32)
    for drawn, choose in ((noise, None), (many, many.choose)):
        columns = [drawn.cross, drawn.move.steps.normal, drawn.move.steps.uniform]
        columns += [] if choose is None else [choose]
        rows = np.stack([np.asarray(column).reshape(n) for column in columns])
        off = np.corrcoef(rows)[np.triu_indices(len(rows), 1)]
        assert np.all(np.abs(off) < 5.0 / np.sqrt(n)), off
