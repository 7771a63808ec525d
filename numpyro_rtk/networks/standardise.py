r"""Standardisation of the data and the Gaussian that fits it.

The noising process lives on :math:`z = (x - \text{loc}) / \text{scale}`. On that scale
the data have a covariance :math:`V \operatorname{diag}(\lambda) V^T`, and the
Gaussian with that covariance stays Gaussian under the process: at time ``t`` it is
:math:`N(0, V \operatorname{diag}(a_t^2 \lambda + s_t^2) V^T)`, exactly normalised. It
is the base of the learned energies, which only have to learn the rest.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from numpyro_rtk.noise import noise_variance

__all__ = [
    "GaussianBase",
    "exchangeable_covariance",
    "fit_gaussian_base",
    "fit_loc_and_scale",
    "shrink_variances",
]


class GaussianBase(eqx.Module):
    """A Gaussian of mean 0 followed through the noising process.

    Attributes:
        axes: principal axes, the columns of an orthogonal matrix ``(d, d)``.
        variances: variance of the data along each axis, ``(d,)``.
    """

    axes: jax.Array
    variances: jax.Array

    def energy(self, z: jax.Array, t: jax.Array) -> jax.Array:
        """Minus the log density of the noised Gaussian; ``z`` (d,), ``t`` () -> ()."""
        variances = self.variances_at(t)
        along = z @ self.axes
        constant = np.log(2.0 * np.pi)
        return 0.5 * jnp.sum(along**2 / variances + jnp.log(variances) + constant)

    def score(self, z: jax.Array, t: jax.Array) -> jax.Array:
        """Gradient of the log density; ``z`` (d,), ``t`` () -> (d,)."""
        return -self.axes @ ((z @ self.axes) / self.variances_at(t))

    def variances_at(self, t: jax.Array) -> jax.Array:
        """Variance along each axis at OU time ``t``: ``a_t**2 lambda + s_t**2``."""
        return self.variances * jnp.exp(-2.0 * t) + noise_variance(t)


def fit_loc_and_scale(
    samples: np.ndarray, standardise: str, exchangeable: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of the samples, on their own scale.

    Args:
        samples: ``(n, *event_shape)``, float64.
        standardise: ``"coordinate"``, one scale for each coordinate; ``"global"``, one
            scale for all, which keeps the ratio of their spreads.
        exchangeable: the same for every entry of the first axis of an event, as if each
            sample stood there in every order.

    Returns:
        ``loc`` and ``scale``, both of shape ``event_shape``.
    """
    axis = (0, 1) if exchangeable else 0
    loc, scale = samples.mean(axis=axis), samples.std(axis=axis)
    if exchangeable:
        loc, scale = (np.full(samples.shape[1:], value) for value in (loc, scale))
    if standardise == "global":
        scale = np.full_like(scale, np.sqrt(np.mean(scale**2)))
    return loc, scale


def shrink_variances(z: np.ndarray, variances: np.ndarray) -> np.ndarray:
    """Eigenvalues of the sample covariance, shrunk to their mean.

    The intensity is the Ledoit-Wolf estimate: of order ``1 / n``, and large only where
    rows are few for the dimension, so that no principal axis has variance 0.

    Args:
        z: centred data ``(n, d)``.
        variances: eigenvalues of ``z.T @ z / n``, ``(d,)``.

    Returns:
        The shrunk eigenvalues, ``(d,)``.

    References:
        Ledoit, Wolf: "A well-conditioned estimator for large-dimensional covariance
        matrices", J. Multivariate Analysis 88 (2004).
    """
    n = z.shape[0]
    centre = variances.mean()
    spread = np.sum((variances - centre) ** 2)
    noise = (np.mean(np.sum(z**2, axis=1) ** 2) - np.sum(variances**2)) / n
    intensity = 1.0 if spread == 0.0 else float(np.clip(noise / spread, 0.0, 1.0))
    return (1.0 - intensity) * variances + intensity * centre


def exchangeable_covariance(covariance: np.ndarray, num: int) -> np.ndarray:
    """The mean of a covariance over all orders of ``num`` elements.

    Args:
        covariance: ``(num * d, num * d)``, elements one after the other.
        num: of elements.

    Returns:
        One block for every element and one for every two, ``(num * d, num * d)``.
    """
    dim = len(covariance) // num
    blocks = covariance.reshape(num, dim, num, dim)
    own = np.einsum("idie->de", blocks) / num
    other = (np.einsum("idje->de", blocks) - num * own) / max(num * (num - 1), 1)
    return np.kron(np.eye(num), own - other) + np.kron(np.ones((num, num)), other)


def fit_gaussian_base(z: np.ndarray, num_exchangeable: int = 1) -> GaussianBase:
    """The Gaussian base of standardised data, in float32.

    Args:
        z: centred data, ``(n, d)``.
        num_exchangeable: number of elements, one after the other, whose order is not to
            matter; 1: one vector.
    """
    covariance = z.T @ z / z.shape[0]
    if num_exchangeable > 1:
        covariance = exchangeable_covariance(covariance, num_exchangeable)
    variances, axes = np.linalg.eigh(covariance)
    variances = shrink_variances(z, np.maximum(variances, 0.0))
    return GaussianBase(
        jnp.asarray(axes, jnp.float32), jnp.asarray(variances, jnp.float32)
    )
