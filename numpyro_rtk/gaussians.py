r"""Gaussian mixtures followed through the noise: the one closed form of the package.

Noise keeps a mixture a mixture. With :math:`z_t = a_t z_0 + s_t e` and components
:math:`N(m_j, V_j \operatorname{diag}(\lambda_j) V_j^T)`,

.. math:: p_t(z) = \sum_j w_j\, N\bigl(z; a_t m_j,
                   V_j \operatorname{diag}(a_t^2 \lambda_j + s_t^2)\, V_j^T\bigr),

exactly normalised, with the weights as they were. :class:`NoisedMixture` is that law on
the scale on which the noise runs. It is the base of a learned density, which so knows
about separated modes and their weights before a network has learned anything; one
Gaussian is the mixture of one. :class:`GaussianMixture` is the same law on a user's
scale: an oracle, and a teaching aid.
"""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from numpyro_rtk._batch import map_over_batch
from numpyro_rtk._checks import (
    check_finite_values,
    check_orthogonal,
    check_positive_values,
    check_resolution,
)
from numpyro_rtk.noise import noise_variance, signal

__all__ = [
    "GaussianMixture",
    "NoisedMixture",
    "noised_gaussian",
    "noised_mixture",
]

_LOG_2PI = 1.8378770664093453


class NoisedMixture(eqx.Module):
    """A mixture of K Gaussians on ``dim`` coordinates, at every noise level.

    Attributes:
        log_weights: ``(K,)``.
        axes: principal axes of all components, side by side, ``(dim, K * dim)``: one
            product with them turns a point to all.
        centres: each component's mean along its own axes, ``(K, dim)``.
        variances: its variances along them, ``(K, dim)``.
    """

    log_weights: jax.Array
    axes: jax.Array
    centres: jax.Array
    variances: jax.Array

    @property
    def axes_by_component(self) -> jax.Array:
        """``(K, dim, dim)``: of component, coordinate and axis."""
        num, dim = self.centres.shape
        return jnp.moveaxis(self.axes.reshape(dim, num, dim), 1, 0)

    def variances_at(self, t: jax.Array | float) -> jax.Array:
        """Variances along the axes at OU time ``t``, ``(K, dim)``."""
        return self.variances * jnp.exp(-2.0 * t) + noise_variance(jnp.asarray(t))

    def log_density(self, z: jax.Array, t: jax.Array | float) -> jax.Array:
        """Log density of ``z_t``; ``z`` (dim,), ``t`` () -> ()."""
        return jax.nn.logsumexp(self._by_component(z, t)[0])

    def score(self, z: jax.Array, t: jax.Array | float) -> jax.Array:
        """Gradient of the log density; ``z`` (dim,), ``t`` () -> (dim,)."""
        return self.log_density_and_score(z, t)[1]

    def log_density_and_score(
        self, z: jax.Array, t: jax.Array | float
    ) -> tuple[jax.Array, jax.Array]:
        """Both; ``z`` (dim,), ``t`` () -> (), (dim,)."""
        by_component, along, variances = self._by_component(z, t)
        slopes = jax.nn.softmax(by_component)[:, None] * along / variances
        return jax.nn.logsumexp(by_component), -(self.axes @ slopes.reshape(-1))

    def _by_component(
        self, z: jax.Array, t: jax.Array | float
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Its part of the density, the log ``(K,)``; distances and variances on axes."""
        variances = self.variances_at(t)
        along = (z @ self.axes).reshape(self.centres.shape)
        along = along - jnp.exp(-t) * self.centres
        terms = along**2 / variances + jnp.log(variances) + _LOG_2PI
        return self.log_weights - 0.5 * jnp.sum(terms, axis=-1), along, variances

    def sample(
        self, key: jax.Array, t: jax.Array | float, sample_shape: tuple[int, ...] = ()
    ) -> jax.Array:
        """Independent draws at OU time ``t``, ``sample_shape + (dim,)``."""
        num, dim = self.centres.shape
        key_component, key_noise = jr.split(key)
        chosen = jr.categorical(key_component, self.log_weights, shape=sample_shape)
        noise = jr.normal(key_noise, (*sample_shape, dim), self.variances.dtype)
        along = jnp.sqrt(self.variances_at(t))[chosen] * noise
        along = along + jnp.exp(-t) * self.centres[chosen]
        if num == 1:  # no copy of the axes for each draw: they may be thousands
            return along @ self.axes.T
        return jnp.einsum("...ab,...b->...a", self.axes_by_component[chosen], along)

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


def noised_mixture(
    weights: np.ndarray | Sequence[float],
    means: np.ndarray | Sequence,
    covariances: np.ndarray | Sequence,
    dtype: type = np.float32,
) -> NoisedMixture:
    """From weights ``(K,)``, means ``(K, dim)``, covariances ``(K, dim, dim)``.

    The axes are found in NumPy's float64: float32 loses the small variances.
    """
    variances, axes = np.linalg.eigh(np.asarray(covariances, np.float64))
    return NoisedMixture(
        log_weights=jnp.asarray(np.log(weights), dtype),
        axes=jnp.asarray(np.concatenate(list(axes), axis=1), dtype),
        centres=jnp.asarray(np.einsum("kd,kde->ke", means, axes), dtype),
        variances=jnp.asarray(variances, dtype),
    )


def noised_gaussian(
    axes: np.ndarray | jax.Array, variances: np.ndarray | jax.Array
) -> NoisedMixture:
    """One Gaussian of mean 0: axes, columns of ``(dim, dim)``, variances ``(dim,)``."""
    return NoisedMixture(
        log_weights=jnp.zeros(1, jnp.float32),
        axes=jnp.asarray(axes, jnp.float32),
        centres=jnp.zeros((1, len(variances)), jnp.float32),
        variances=jnp.asarray(variances, jnp.float32)[None],
    )


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
        loc: centre of the noise process, ``(dim,)``; the mixture is kept relative to it,
            and another one (``eqx.tree_at``) moves all of it.
        scale: its scale per coordinate, ``(dim,)``; likewise.

    Raises:
        ValueError: for shapes that do not fit, weights that are not a distribution,
            means that are not finite, covariances that are not positive definite, or
            means so far out that floating point numbers do not resolve a component
            there (a warning where they hardly do).
    """

    loc: jax.Array
    scale: jax.Array
    _offset: jax.Array
    _noised: NoisedMixture

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
        centre, dim = w @ m, m.shape[1]
        second = np.einsum("j,jaa->a", w, c) + w @ np.square(m - centre)
        loc = centre if standardise else np.zeros(dim)
        scale = np.sqrt(second) if standardise else np.ones(dim)
        self.loc, self.scale = jnp.asarray(loc), jnp.asarray(scale)
        # about its mean: turned to a component's axes, a point far off loses its digits
        self._offset = jnp.asarray(centre - loc)
        self._noised = noised_mixture(
            w, (m - centre) / scale, c / (scale[:, None] * scale), float
        )

    @property
    def event_shape(self) -> tuple[int, ...]:
        """``(dim,)``."""
        return self.loc.shape

    @property
    def weights(self) -> jax.Array:
        """``(components,)``."""
        return jnp.exp(self._noised.log_weights)

    @property
    def means(self) -> jax.Array:
        """``(components, dim)``."""
        axes = self._noised.axes_by_component
        means = jnp.einsum("jab,jb->ja", axes, self._noised.centres)
        return self.loc + self._offset + self.scale * means

    @property
    def covariances(self) -> jax.Array:
        """``(components, dim, dim)``."""
        axes, variances = self._noised.axes_by_component, self._noised.variances
        covariances = jnp.einsum("jab,jb,jcb->jac", axes, variances, axes)
        return covariances * self.scale[:, None] * self.scale

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
        z = self._noised.sample(key, 0.0, sample_shape)
        return self.loc + self._offset + self.scale * z

    def _log_density(self, x: jax.Array, t: jax.Array) -> jax.Array:
        log_density = self._noised.log_density(self._standardised(x, t), t)
        return log_density - jnp.sum(jnp.log(self.scale))

    def _both(self, x: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array]:
        both = self._noised.log_density_and_score(self._standardised(x, t), t)
        return both[0] - jnp.sum(jnp.log(self.scale)), both[1] / self.scale

    def _standardised(self, x: jax.Array, t: jax.Array) -> jax.Array:
        return (x - self.loc - signal(t) * self._offset) / self.scale


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
