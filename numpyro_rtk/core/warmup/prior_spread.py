"""What the prior's draws say of the spread that every level leaves the clean value."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from numpyro_rtk.noise import noise_variance, signal

__all__ = ["PriorSpread"]

# What a mean product of a thousand scores errs by; and the least variance along an axis.
_MOMENT_ERROR, _SMALLEST_VARIANCE = 0.03, 1e-12


class PriorSpread(NamedTuple):
    r"""How uncertain the clean value is at a level: the mean of its covariance.

    ``C = C_G^{1/2} P C_G^{1/2}`` with ``C_G`` that of a Gaussian with the prior's
    covariance S, which is the error of the best linear prediction, and so P between 0 and
    1. It is 1 at all levels of a Gaussian, and changes slowly for others.

    Attributes:
        times: ``(n,)``.
        variance: of the prior along its axes, ``(dim,)``.
        axes: the eigenvectors of S, ``(dim, dim)``; None: those of the coordinates.
        part: P along the axes, ``(n, dim, dim)``, or its diagonal ``(n, dim)``.
    """

    times: jax.Array
    variance: jax.Array
    axes: jax.Array | None
    part: jax.Array

    @classmethod
    def of(
        cls, times: jax.Array, second_moment: jax.Array, covariance: jax.Array
    ) -> "PriorSpread":
        """From what was measured: ``C = s**2 / a**2 (I - s**2 E[score score^T])``.

        Near the top that is a small difference of an estimate, and P taken for 1.

        Args:
            times: ``(n,)``.
            second_moment: mean products of the noised prior's scores, ``(n, dim)``, or
                ``(n, dim, dim)``.
            covariance: S, ``(dim,)`` or ``(dim, dim)``.
        """
        times = jnp.asarray(times, second_moment.dtype)
        axes = None
        if covariance.ndim == 2:
            covariance, axes = jnp.linalg.eigh(covariance)
        variance = jnp.maximum(covariance, _SMALLEST_VARIANCE)
        levels = (signal(times), noise_variance(times), second_moment)
        one = lambda level: _measured_part(variance, axes, *level)
        return cls(times, variance, axes, jax.lax.map(one, levels))

    def unknown(self, times: jax.Array) -> jax.Array:
        """C at times ``(m,)``, ``(m, dim)`` or ``(m, dim, dim)``."""
        place = noise_variance(self.times)
        one = lambda row: jnp.interp(noise_variance(times), place, row)
        rows = self.part.reshape(len(self.times), -1)
        flat = jax.vmap(one, in_axes=1, out_axes=1)(rows)
        part = flat.reshape(len(times), *self.part.shape[1:])
        a, s2 = signal(times)[:, None], noise_variance(times)[:, None]
        gaussian = _gaussian(self.variance[None], a, s2)
        if self.axes is None:
            return part * gaussian
        root = self.axes[None] * jnp.sqrt(gaussian)[:, None]
        return root @ part @ jnp.swapaxes(root, -1, -2)


def _gaussian(variance, a, s2):
    return s2 * variance / (s2 + jnp.square(a) * variance)


def _measured_part(variance, axes, a, s2, second_moment: jax.Array) -> jax.Array:
    known = jnp.square(a) / (jnp.square(a) + _MOMENT_ERROR**2 / jnp.square(a))
    # what was measured, by a Gaussian's; written so that it holds without noise too
    root = jnp.sqrt((s2 + jnp.square(a) * variance) / variance) / a
    if axes is None:
        part = jnp.square(root) * (1.0 - s2 * second_moment)
        return known * jnp.clip(part, 0.0, 1.0) + 1.0 - known
    root, eye = axes * root[None], jnp.eye(len(variance), dtype=variance.dtype)
    part, turned = jnp.linalg.eigh(root.T @ (eye - s2 * second_moment) @ root)
    part = known * jnp.clip(part, 0.0, 1.0) + 1.0 - known
    return (turned * part[None]) @ turned.T
