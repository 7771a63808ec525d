"""A user's own conditional density, for tests of what priors depend on."""

import jax
import jax.numpy as jnp
import numpyro.distributions as dist


class Moving:
    """p(x | c) on the line, by (weight, mean, variance) of two components."""

    event_shape, condition_shape = (1,), ()
    loc, scale = jnp.array([0.2]), jnp.array([1.4])

    def given(self, c):
        return MovingAt(c)


class MovingAt:
    event_shape = (1,)

    def __init__(self, c):
        self.weights = jax.nn.softmax(jnp.stack([1.2 * c, jnp.zeros_like(c)]))
        self.means = jnp.stack([c - 1.3, 1.0 + 0.3 * c])
        self.variances = jnp.array([0.1, 0.2])

    def log_density(self, x, t):
        a = jnp.exp(-t)
        means = Moving.loc + a * (self.means - Moving.loc)
        spread = a**2 * self.variances + (1 - a**2) * Moving.scale**2
        parts = dist.Normal(means, jnp.sqrt(spread)).log_prob(x[0])
        return jax.nn.logsumexp(parts + jnp.log(self.weights))

    def score(self, x, t):
        return jax.grad(self.log_density)(x, t)
