r"""Losses for one noisy point each; the loop averages them over a batch.

Notation: ``z0`` a standardised sample, ``e ~ N(0, I)`` and ``log_r`` a noise level;
:math:`y = z_0 + r e` is the noisy point on the data's scale and :math:`z = a y` the
same point on the process's, with :math:`a = (1 + r^2)^{-1/2}`.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr

from numpyro_rtk.density import Density, loc_and_scale
from numpyro_rtk.networks.model import EnergyModel, ScoreModel
from numpyro_rtk.noise import noise_variance, time_from_noise_to_signal

__all__ = [
    "ScoreDistillation",
    "denoising_score_matching",
    "dual_score_matching",
    "slopes_of_score",
    "variance_exploding",
]

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


class ScoreDistillation(eqx.Module):
    r"""Match an energy to the score of another density, its teacher.

    .. math:: \frac{1}{d} \lVert r \nabla_y E - \hat e \rVert^2
              + \frac{1}{d^2} \bigl(\partial_{\log r} E - \hat c\bigr)^2

    The two terms are those of :func:`dual_score_matching`, whose targets ``e`` and
    :math:`d - \lVert e \rVert^2` stand for their means at the noisy point ``y``. Of an
    exact score :math:`\hat e = -r \nabla \log p_r(y)` is the one, and, by the heat
    equation that :math:`p_r` solves,

    .. math:: \hat c = -r^2 \bigl(\nabla\!\cdot\!\nabla \log p_r
              + \lVert \nabla \log p_r \rVert^2\bigr)
              = r\, \nabla\!\cdot\!\hat e - \lVert \hat e \rVert^2

    the other. The divergence is estimated by one random probe a point (Hutchinson). So
    neither target has the noise's own variance, and no control variate is needed.

    Attributes:
        teacher: with a score; its noise is that of the model, up to one factor for all
            coordinates.

    References:
        Hutchinson: "A stochastic estimator of the trace of the influence matrix",
        Communications in Statistics 19 (1990). Lai et al.: "FP-Diffusion", ICML 2023,
        arXiv 2210.04296.
    """

    teacher: Density

    def __call__(
        self, model: EnergyModel, z0: jax.Array, e: jax.Array, log_r: jax.Array
    ) -> jax.Array:
        """The loss at ``y = z0 + r e``, a scalar; arguments as of the others."""
        r = jnp.exp(log_r)
        y = z0 + r * e
        # random bits that the loop need not hand in: those of the noise itself
        bits = jax.lax.bitcast_convert_type(e.ravel()[0], jnp.uint32)
        probe = jr.rademacher(jr.key(bits), y.shape, y.dtype)
        noise, rate = slopes_of_score(self.teacher, model, y, log_r, probe)
        slopes = jax.grad(variance_exploding, argnums=(1, 2))
        by_point, by_noise = slopes(model, y, log_r)
        space = jnp.sum((r * by_point - noise) ** 2)
        return space / e.size + (by_noise - rate) ** 2 / e.size**2


def slopes_of_score(
    teacher: Density,
    model: EnergyModel,
    y: jax.Array,
    log_r: jax.Array,
    probe: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    r"""What both slopes of the energy should be for a teacher's score.

    Args:
        teacher: with a score.
        model: whose standardised scale ``y`` is on.
        y: ``event_shape``.
        log_r: scalar.
        probe: random signs, ``event_shape``.

    Returns:
        :math:`r \nabla_y E`, the noise that the teacher finds in ``y``, ``event_shape``;
        and an unbiased estimate of :math:`\partial_{\log r} E`, a scalar.
    """
    loc, scale = loc_and_scale(teacher)
    # the teacher's noise-to-signal ratio where the noise on the user's scale is the same
    r = jnp.exp(log_r) * jnp.mean(model.scale / scale)
    t = time_from_noise_to_signal(r)

    def predicted(y):
        x = loc + jnp.exp(-t) * (model.loc + model.scale * y - loc)
        noise = -jnp.sqrt(noise_variance(t)) * scale * teacher.score(x, t)
        return noise.astype(y.dtype)

    noise, change = jax.jvp(predicted, (y,), (probe,))
    return noise, jnp.exp(log_r) * jnp.sum(probe * change) - jnp.sum(noise**2)
