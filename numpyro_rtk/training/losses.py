r"""Losses for one noisy point each; the loop averages them over a batch.

Notation: ``z0`` a standardised sample, ``e ~ N(0, I)`` and ``log_r`` a noise level;
:math:`y = z_0 + r e` is the noisy point on the data's scale and :math:`z = a y` the
same point on the process's, with :math:`a = (1 + r^2)^{-1/2}`.
"""

import jax
import jax.numpy as jnp

from numpyro_rtk.networks.model import EnergyModel, ScoreModel
from numpyro_rtk.noise import time_from_noise_to_signal

__all__ = ["denoising_score_matching", "dual_score_matching", "variance_exploding"]

_CONTROL_SCALE = 0.3  # noise-to-signal ratio up to which the control variate pays


def variance_exploding(model: EnergyModel, y: jax.Array, log_r: jax.Array) -> jax.Array:
    r"""The energy :math:`E(y, \log r) = -\log p_r(y)` of ``y = z_0 + r e``.

    A change of variables from :meth:`EnergyModel.energy_standardised`:
    :math:`p_r(y) = a^d p_t(a y)`.

    Args:
        model: on any data scale; only its standardised side is used.
        y: ``event_shape``.
        log_r: scalar.

    Returns:
        The energy, a scalar.
    """
    t = time_from_noise_to_signal(jnp.exp(log_r))
    return model.energy_standardised(jnp.exp(-t) * y, t) + y.size * t


def dual_score_matching(
    model: EnergyModel, z0: jax.Array, e: jax.Array, log_r: jax.Array
) -> jax.Array:
    r"""Match both derivatives of the energy, in the point and in the noise level.

    .. math:: \frac{1}{d} \lVert r \nabla_y E - e \rVert^2
              + \frac{1}{d^2}
              \bigl(\partial_{\log r} E - (d - \lVert e \rVert^2)\bigr)^2

    The first term is denoising score matching. The second fixes how the normalising
    constant moves with the noise, and with it the weights of separated modes; the full
    weight (without ``1 / d``) damages the scores. Both come from one reverse pass.

    Where the noise is small the targets are nearly pure noise, and so are the
    gradients of the products :math:`e \cdot \nabla_y E` and
    :math:`(d - \lVert e \rVert^2)\, \partial_{\log r} E`. The same products at
    ``y = z0`` have mean zero; ``1 / (1 + (r / 0.3)^2)`` times these is taken off (a
    control variate), at the price of a second pass. The mean of the loss is as written
    above.

    Args:
        model: the energy being trained.
        z0: standardised sample, ``event_shape``.
        e: standard normal noise, ``event_shape``.
        log_r: scalar.

    Returns:
        The loss at this point, a scalar.

    References:
        Guth, Kadkhodaie, Simoncelli: "Learning normalized image densities via dual
        score matching" (2025), arXiv 2506.05310.
    """
    dim = e.size
    r = jnp.exp(log_r)
    slopes = jax.grad(variance_exploding, argnums=(1, 2))
    by_point, by_noise = slopes(model, z0 + r * e, log_r)
    by_point_0, by_noise_0 = slopes(model, z0, log_r)
    target = dim - jnp.sum(e**2)
    share = 2.0 / (1.0 + (r / _CONTROL_SCALE) ** 2)
    space = jnp.sum((r * by_point - e) ** 2) + share * r * jnp.sum(e * by_point_0)
    noise = (by_noise - target) ** 2 + share * target * by_noise_0
    return space / dim + noise / dim**2


def denoising_score_matching(
    model: ScoreModel, z0: jax.Array, e: jax.Array, log_r: jax.Array
) -> jax.Array:
    r"""Match the noise: :math:`\lVert s_t \nabla \log p_t(z) + e \rVert^2 / d`.

    Args:
        model: the score being trained.
        z0: standardised sample, ``event_shape``.
        e: standard normal noise, ``event_shape``.
        log_r: scalar.

    Returns:
        The loss at this point, a scalar.

    References:
        Vincent: "A connection between score matching and denoising autoencoders",
        Neural Computation 23 (2011).
    """
    r = jnp.exp(log_r)
    t = time_from_noise_to_signal(r)
    a = jnp.exp(-t)
    score = model.score_standardised(a * (z0 + r * e), t)
    return jnp.sum((a * r * score + e) ** 2) / e.size
