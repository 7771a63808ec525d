r"""Gaussian mixtures with their exact noised densities: the oracle, and a teaching aid.

Noise keeps a mixture a mixture: with :math:`x_t = a_t x_0 + s_t e`,

.. math:: p_t(x) = \sum_j w_j\, N(x; a_t \mu_j, a_t^2 \Sigma_j + s_t^2 I).
"""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from numpyro_rtk._checks import check_resolution
from numpyro_rtk.networks.shapes import map_over_batch
from numpyro_rtk.noise import noise_variance, signal

__all__ = ["GaussianMixture"]

_LOG_2PI = 1.8378770664093453


class GaussianMixture(eqx.Module):
    r"""The exact law of a Gaussian mixture at every noise level.

    It has the interface of :class:`~numpyro_rtk.EnergyModel`, so it can stand wherever
    a learned model can: ``LearnedPrior(mixture)``, ``RTKMALA(score=mixture)``.

    Args:
        weights: ``(components,)``, positive, summing to one.
        means: ``(components, dim)``.
        covariances: ``(components, dim, dim)``, symmetric positive definite.
        standardise: run the noise on ``(x - mean) / sd`` per coordinate, as a learned
            model does, rather than on ``x`` itself. Set it unless the mixture is
            already centred and of unit variance: an annealed run starts from the
            noise's own Gaussian.

    Attributes:
        loc: centre of the noise process, ``(dim,)``.
        scale: its scale per coordinate, ``(dim,)``.

    Raises:
        ValueError: for shapes that do not fit, weights that are not a distribution,
            means that are not finite, covariances that are not positive definite, or
            means so far out that floating point numbers do not resolve a component
            there (a warning where they hardly do).
    """

    weights: jax.Array
    means: jax.Array
    covariances: jax.Array
    loc: jax.Array
    scale: jax.Array
    _variances: jax.Array
    _axes: jax.Array

    def __init__(
        self,
        weights: jax.Array | np.ndarray | Sequence[float],
        means: jax.Array | np.ndarray | Sequence,
        covariances: jax.Array | np.ndarray | Sequence,
        *,
        standardise: bool = False,
    ):
        w, m, c = (np.asarray(a, dtype=float) for a in (weights, means, covariances))
        _check_shapes(w, m, c)
        _check_values(w, m, c)
        spreads = np.sqrt(np.diagonal(c, axis1=1, axis2=2))
        check_resolution("means", m, spreads, jnp.result_type(float))
        w = w / w.sum()  # one to the last digit, not to the check's
        centre = w @ m
        spread = np.einsum("j,jab->ab", w, c) + np.einsum(
            "j,ja,jb->ab", w, m - centre, m - centre
        )
        dim = m.shape[1]
        loc = centre if standardise else np.zeros(dim)
        scale = np.sqrt(np.diag(spread)) if standardise else np.ones(dim)
        # eigenvectors in NumPy's float64: float32 loses the small variances
        variances, axes = np.linalg.eigh(c / (scale[:, None] * scale))
        self.weights, self.means, self.covariances = map(jnp.asarray, (w, m, c))
        self.loc, self.scale = jnp.asarray(loc), jnp.asarray(scale)
        self._variances, self._axes = jnp.asarray(variances), jnp.asarray(axes)

    @property
    def event_shape(self) -> tuple[int, ...]:
        """``(dim,)``."""
        return (self.means.shape[1],)

    def log_density(self, x: jax.Array, t: jax.Array | float) -> jax.Array:
        """Log density of ``x_t``; ``x`` is ``batch + (dim,)``, ``t`` OU time."""
        return map_over_batch(self._log_density, self.event_shape, x, t)

    def score(self, x: jax.Array, t: jax.Array | float) -> jax.Array:
        """Gradient of :meth:`log_density` in ``x``, of the shape of ``x``."""
        return self.log_density_and_score(x, t)[1]

    def log_density_and_score(
        self, x: jax.Array, t: jax.Array | float
    ) -> tuple[jax.Array, jax.Array]:
        """Both at once."""
        return map_over_batch(self._both, self.event_shape, x, t)

    def sample(self, key: jax.Array, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        """Independent draws of the mixture itself, ``sample_shape + (dim,)``."""
        key_component, key_noise = jr.split(key)
        chosen = jr.categorical(
            key_component, jnp.log(self.weights), shape=sample_shape
        )
        noise = jr.normal(key_noise, (*sample_shape, *self.event_shape))
        spread = jnp.sqrt(self._variances[chosen]) * noise
        rotated = jnp.einsum("...ab,...b->...a", self._axes[chosen], spread)
        return self.means[chosen] + self.scale * rotated

    def _log_density(self, x: jax.Array, t: jax.Array) -> jax.Array:
        return self._both(x, t)[0]

    def _both(self, x: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array]:
        z = (x - self.loc) / self.scale
        means = signal(t) * (self.means - self.loc[None]) / self.scale[None]
        variances = jnp.square(signal(t)) * self._variances + noise_variance(t)
        along = jnp.einsum("jab,ja->jb", self._axes, z[None] - means)
        exponents = jnp.square(along) / variances + jnp.log(variances) + _LOG_2PI
        by_component = jnp.log(self.weights) - 0.5 * jnp.sum(exponents, axis=-1)
        shares = jax.nn.softmax(by_component)
        score = -jnp.einsum("jab,jb,j->a", self._axes, along / variances, shares)
        log_density = jax.nn.logsumexp(by_component) - jnp.sum(jnp.log(self.scale))
        return log_density, score / self.scale


def _check_shapes(w: np.ndarray, m: np.ndarray, c: np.ndarray) -> None:
    if w.ndim != 1 or w.size == 0:
        raise ValueError(f"`weights` must have shape (components,); got {w.shape}.")
    if m.ndim != 2 or m.shape[0] != w.size:
        raise ValueError(f"`means` must have shape ({w.size}, dim); got {m.shape}.")
    expected = (w.size, m.shape[1], m.shape[1])
    if c.shape != expected:
        raise ValueError(f"`covariances` must have shape {expected}; got {c.shape}.")


def _check_values(w: np.ndarray, m: np.ndarray, c: np.ndarray) -> None:
    if not np.all(w > 0) or not np.isclose(w.sum(), 1.0, atol=1e-5):
        raise ValueError(
            "`weights` must be positive and sum to one; got a sum of "
            f"{w.sum():.6g} and a smallest weight of {w.min():.3g}."
        )
    if not np.all(np.isfinite(m)) or not np.all(np.isfinite(c)):
        raise ValueError("`means` and `covariances` must be finite.")
    if not np.allclose(c, np.swapaxes(c, -1, -2), rtol=1e-4):
        raise ValueError("`covariances` must be symmetric; got one that is not.")
    smallest = np.linalg.eigvalsh(c).min()
    if smallest <= 0:
        raise ValueError(
            "`covariances` must be positive definite; got a smallest eigenvalue of "
            f"{smallest:.3g}."
        )
