"""What the prior's draws say of the spread that every level leaves the clean value."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from numpyro_rtk.noise import noise_to_signal, noise_variance, signal

__all__ = ["PriorSpread"]

# Three times what a mean product of a thousand scores errs by; and the least variance along
# an axis.
_MOMENT_ERROR, _SMALLEST_VARIANCE, _TINY = 0.1, 1e-12, 1e-30


class PriorSpread(NamedTuple):
    r"""How uncertain the clean value is at a level: the mean of its covariance.

    ``C = C_G^{1/2} P C_G^{1/2}`` with ``C_G`` that of a Gaussian with the prior's
    covariance S, which is the error of the best linear prediction, and so P between 0 and
    1. It is 1 at all levels of a Gaussian, and changes slowly for others.

    Attributes:
        times: ``(n,)``, rising, none 0.
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
            times: ``(n + 1,)``, the first one 0.
            second_moment: mean products of the noised prior's scores, ``(n + 1, dim)``, or
                ``(n + 1, dim, dim)``.
            covariance: S, ``(dim,)`` or ``(dim, dim)``.
        """
        # without noise there is nothing left to know
        times = jnp.asarray(times, second_moment.dtype)[1:]
        second_moment, axes = second_moment[1:], None
        if covariance.ndim == 2:
            covariance, axes = jnp.linalg.eigh(covariance)
        variance = jnp.maximum(covariance, _SMALLEST_VARIANCE)
        levels = (signal(times), noise_variance(times), second_moment)
        one = lambda level: _measured_part(variance, axes, *level)
        return cls(times, variance, axes, jax.lax.map(one, levels))

    def unknown(self, times: jax.Array) -> jax.Array:
        """C at times ``(m,)``, ``(m, dim)`` or ``(m, dim, dim)``."""
        place = jnp.log(noise_to_signal(self.times))
        at = jnp.log(jnp.maximum(noise_to_signal(times), _TINY))
        one = lambda row: jnp.interp(at, place, row)
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
    """P of a level; as far as the signal along an axis stands out of the error, else 1."""
    share = jnp.square(a) * variance / (s2 + jnp.square(a) * variance)
    known = jnp.square(share) / (jnp.square(share) + _MOMENT_ERROR**2)
    if axes is None:
        part = (1.0 - s2 * second_moment) / share
        return 1.0 - known * (1.0 - jnp.clip(part, 0.0, 1.0))
    # what was measured, in units of a Gaussian's
    root, eye = axes / jnp.sqrt(share)[None], jnp.eye(len(share), dtype=share.dtype)
    less = eye - root.T @ (eye - s2 * second_moment) @ root
    weight = jnp.sqrt(known)
    lost, turned = jnp.linalg.eigh(weight[:, None] * less * weight[None])
    return (turned * (1.0 - jnp.clip(lost, 0.0, 1.0))[None]) @ turned.T
