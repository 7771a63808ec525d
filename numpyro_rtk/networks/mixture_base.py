r"""A Gaussian mixture followed through the noising process: the base of most energies.

On the standardised scale, :math:`\sum_j w_j N(m_j, V_j \operatorname{diag}(\lambda_j)
V_j^T)` stays a mixture under the Ornstein-Uhlenbeck process: at time ``t`` its components
are :math:`N(a_t m_j, V_j \operatorname{diag}(a_t^2 \lambda_j + s_t^2) V_j^T)`, exactly
normalised, and their weights do not change. So a model that starts from it knows about
separated modes and their weights before its network has learned anything; the network
has to learn only what such a mixture cannot say.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from numpyro_rtk._checks import (
    check_finite_values,
    check_orthogonal,
    check_positive_values,
)
from numpyro_rtk.noise import noise_variance

__all__ = ["MixtureBase", "mixture_base"]


class MixtureBase(eqx.Module):
    """A mixture of K Gaussians on ``dim`` coordinates.

    Attributes:
        log_weights: ``(K,)``.
        axes: principal axes of all components, side by side, ``(dim, K * dim)``.
        centres: each component's mean along its own axes, ``(K, dim)``.
        variances: its variances along them, ``(K, dim)``.
    """

    log_weights: jax.Array
    axes: jax.Array
    centres: jax.Array
    variances: jax.Array

    def energy(self, z: jax.Array, t: jax.Array) -> jax.Array:
        """Minus the log density of the noised mixture; ``z`` (dim,), ``t`` () -> ()."""
        variances = self.variances * jnp.exp(-2.0 * t) + noise_variance(t)
        along = (z @ self.axes).reshape(self.centres.shape)
        along = along - jnp.exp(-t) * self.centres
        constant = np.log(2.0 * np.pi)
        terms = along**2 / variances + jnp.log(variances) + constant
        return -jax.nn.logsumexp(self.log_weights - 0.5 * jnp.sum(terms, axis=-1))

    def score(self, z: jax.Array, t: jax.Array) -> jax.Array:
        """Gradient of the log density; ``z`` (dim,), ``t`` () -> (dim,)."""
        return -jax.grad(self.energy)(z, t)

    def sample(self, key: jax.Array, t: jax.Array) -> jax.Array:
        """One draw at OU time ``t``, ``(dim,)``."""
        key_component, key_noise = jr.split(key)
        chosen = jr.categorical(key_component, self.log_weights)
        variances = self.variances[chosen] * jnp.exp(-2.0 * t) + noise_variance(t)
        noise = jr.normal(key_noise, variances.shape, variances.dtype)
        along = jnp.exp(-t) * self.centres[chosen] + jnp.sqrt(variances) * noise
        num, dim = self.centres.shape
        return self.axes.reshape(dim, num, dim)[:, chosen] @ along

    def check(self, name: str) -> None:
        """Raise a ValueError, about ``name``, unless this is a mixture."""
        log_weights = np.asarray(self.log_weights, np.float64)
        total = np.sum(np.exp(log_weights))
        if not abs(total - 1.0) < 1e-3:  # true of NaN as well
            raise ValueError(
                f"`{name}.log_weights` must be logs of weights with the sum 1; got the "
                f"sum {total}."
            )
        check_finite_values(f"{name}.axes", self.axes)
        check_finite_values(f"{name}.centres", self.centres)
        check_positive_values(f"{name}.variances", self.variances)
        num, dim = self.centres.shape
        axes = np.asarray(self.axes).reshape(dim, num, dim)
        for index in np.flatnonzero(log_weights > -np.inf):
            check_orthogonal(f"{name}.axes", axes[:, index])


def mixture_base(
    weights: np.ndarray, means: np.ndarray, covariances: np.ndarray
) -> MixtureBase:
    """From weights ``(K,)``, means ``(K, dim)``, covariances ``(K, dim, dim)``."""
    variances, axes = np.linalg.eigh(covariances)
    return MixtureBase(
        log_weights=jnp.asarray(np.log(weights), jnp.float32),
        axes=jnp.asarray(np.concatenate(list(axes), axis=1), jnp.float32),
        centres=jnp.asarray(np.einsum("kd,kde->ke", means, axes), jnp.float32),
        variances=jnp.asarray(variances, jnp.float32),
    )
