r"""Standardisation of the data and the Gaussian that fits it.

The noising process lives on :math:`z = (x - \text{loc}) / \text{scale}`. On that scale
the data have a covariance :math:`V \operatorname{diag}(\lambda) V^T`, and the
Gaussian with that covariance stays Gaussian under the process: at time ``t`` it is
:math:`N(0, V \operatorname{diag}(a_t^2 \lambda + s_t^2) V^T)`, exactly normalised. It
is the base of the learned energies, which only have to learn the rest.
"""

from collections.abc import Iterable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from numpyro_rtk.noise import noise_variance

__all__ = [
    "GaussianBase",
    "Moments",
    "fit_gaussian_base",
    "fit_gaussian_base_in_chunks",
    "fit_loc_and_scale",
    "moments_in_chunks",
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


class Moments(NamedTuple):
    """Of samples ``(n, *event_shape)``, in float64: all but ``num`` of ``event_shape``.

    ``num``: rows. ``mean``, ``variance``: of each coordinate. ``size``: its largest
    absolute value.
    """

    num: int
    mean: np.ndarray
    variance: np.ndarray
    size: np.ndarray


def moments_in_chunks(chunks: Iterable[np.ndarray]) -> Moments:
    """Moments of samples that come in chunks ``(m, *event_shape)``, in one pass.

    Those of two sets are merged as in Chan, Golub, LeVeque: "Algorithms for computing
    the sample variance", The American Statistician 37 (1983). One chunk gives bit for
    bit ``mean`` and ``var`` of NumPy.
    """
    whole = None
    for chunk in chunks:
        part = Moments(
            len(chunk), chunk.mean(axis=0), chunk.var(axis=0), abs(chunk).max(axis=0)
        )
        whole = part if whole is None else _merge(whole, part)
    if whole is None:
        raise ValueError("`chunks` must hold at least one chunk; got none.")
    return whole


def _merge(one: Moments, two: Moments) -> Moments:
    num = one.num + two.num
    share = two.num / num
    shift = two.mean - one.mean
    variance = (1.0 - share) * one.variance + share * two.variance
    return Moments(
        num,
        one.mean + share * shift,
        variance + share * (1.0 - share) * shift**2,
        np.maximum(one.size, two.size),
    )


def fit_loc_and_scale(
    samples: np.ndarray | Moments, standardise: str
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of the samples, on their own scale.

    Args:
        samples: ``(n, *event_shape)``, float64; or their moments.
        standardise: ``"coordinate"``, one scale for each coordinate; ``"global"``, one
            scale for all, which keeps the ratio of their spreads.

    Returns:
        ``loc`` and ``scale``, both of shape ``event_shape``.
    """
    moments = samples if isinstance(samples, Moments) else moments_in_chunks([samples])
    loc, scale = moments.mean, np.sqrt(moments.variance)
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
    return _shrink(z.shape[0], _mean_fourth_power(z), variances)


def _mean_fourth_power(z: np.ndarray) -> float:
    return np.mean(np.sum(z**2, axis=1) ** 2)


def _shrink(n: int, mean_fourth_power: float, variances: np.ndarray) -> np.ndarray:
    centre = variances.mean()
    spread = np.sum((variances - centre) ** 2)
    noise = (mean_fourth_power - np.sum(variances**2)) / n
    intensity = 1.0 if spread == 0.0 else float(np.clip(noise / spread, 0.0, 1.0))
    return (1.0 - intensity) * variances + intensity * centre


def fit_gaussian_base(z: np.ndarray) -> GaussianBase:
    """The Gaussian base of standardised data ``(n, d)``, in float32."""
    return fit_gaussian_base_in_chunks([z], len(z))


def fit_gaussian_base_in_chunks(chunks: Iterable[np.ndarray], num: int) -> GaussianBase:
    """The Gaussian base of standardised data in chunks ``(m, d)``, ``num`` rows in all.

    One chunk gives bit for bit :func:`fit_gaussian_base`.
    """
    covariance, fourth = 0.0, 0.0
    for z in chunks:
        share = len(z) / num
        covariance = covariance + share * (z.T @ z / len(z))
        fourth = fourth + share * _mean_fourth_power(z)
    variances, axes = np.linalg.eigh(covariance)
    variances = _shrink(num, fourth, np.maximum(variances, 0.0))
    return GaussianBase(
        jnp.asarray(axes, jnp.float32), jnp.asarray(variances, jnp.float32)
    )
