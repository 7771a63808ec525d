r"""Learned families of densities ``p_t``, on the user's scale.

With :math:`z = (x - \text{loc}) / \text{scale}` the process is
:math:`z_t = a_t z_0 + s_t e` and :math:`x_t = \text{loc} + \text{scale}\, z_t`; at
``t = 0`` it is the data. The models take ``x`` of shape ``batch + event_shape`` on the
user's scale and ``t`` in OU time, a scalar or broadcastable to ``batch``.
"""

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from numpyro_rtk._batch import map_over_batch
from numpyro_rtk.gaussian_product import NoisedProduct
from numpyro_rtk.gaussians import NoisedMixture
from numpyro_rtk.networks.base import AbstractEnergyNetwork, AbstractScoreNetwork
from numpyro_rtk.networks.condition import Conditional, Conditioning
from numpyro_rtk.networks.site import SiteSpec
from numpyro_rtk.networks.wrapped import WrappedScore, wrap
from numpyro_rtk.noise import noise_variance
from numpyro_rtk.schedules import Schedule

__all__ = ["EnergyModel", "ScoreModel"]


def _clamped_time(t: jax.Array, smallest_noise: float) -> jax.Array:
    """``t``, raised to the OU time at which ``r_t`` is ``smallest_noise``."""
    return jnp.maximum(t, 0.5 * math.log1p(smallest_noise**2))


def _log_noise_to_signal(t: jax.Array, largest_noise: float) -> jax.Array:
    """``log r_t``, at most the log of ``largest_noise``; finite for every t > 0."""
    log_r = t + 0.5 * jnp.log(noise_variance(t))
    return jnp.minimum(log_r, math.log(largest_noise))


class EnergyModel(Conditional):
    r"""A learned density at every noise level, with its score.

    .. math:: -\log p_t(z) = E_\text{base}(z, t) + a_t^2\, f(\tilde z, \log r_t), \qquad
              \tilde z = z\, \Bigl(1 + \frac{|z|^2}{d\, b^2}\Bigr)^{-1/2}

    The first term is the exact energy, after noise, of what fits the data best: one
    Gaussian, a mixture by EM, or a product of mixtures over independent subspaces; the
    second a network's. The factor :math:`a_t^2` makes the density that of the base, and
    normalised, at the noise end; how the normalising constant moves on the way to the
    data is part of the training loss
    (:func:`numpyro_rtk.training.losses.dual_score_matching`).

    The network sees :math:`\tilde z`, of a root mean square below the ``reach`` b: so it
    is bounded, the base rules far from the data, and the integral is finite whatever
    the weights. A network that grew like its input could outweigh any base.

    Of a conditional density :math:`p(x \mid c)` (``rtk.fit(..., condition=c)``) the
    Gaussian has the mean :math:`a_t B c` of a regression on ``c``, and the network sees
    ``c``; so it is normalised at the noise end for every ``c``. ``given(c)`` is the
    density at one ``c``, a model like any other; without it nothing can be evaluated.

    Times below that of the smallest trained noise are raised to it; beyond the largest
    trained noise the network's input stays there while its factor goes on to 0.

    Attributes:
        network: the learned correction.
        base: of the standardised data: a Gaussian, a mixture of them, or a product of
            mixtures over independent subspaces.
        loc: mean of the data, of ``event_shape``; not trained.
        scale: standard deviation of the data, of ``event_shape``; not trained.
        noise_range: smallest and largest trained noise-to-signal ratio.
        reach: b, in standard deviations of the process; None: the network sees ``z``.
        sites: what the values stand for, where they are not one array of real numbers.
        uses_network: False leaves the base alone, and the network is not evaluated.
        conditioning: of a conditional density, else None.
        bound: the standardised condition, once it is given.
    """

    network: AbstractEnergyNetwork
    base: NoisedMixture | NoisedProduct
    loc: jax.Array
    scale: jax.Array
    noise_range: tuple[float, float] = eqx.field(static=True)
    sites: tuple[SiteSpec, ...] | None = eqx.field(static=True, default=None)
    uses_network: bool = eqx.field(static=True, default=True)
    reach: float | None = eqx.field(static=True, default=None)
    conditioning: Conditioning | None = None
    bound: jax.Array | None = None

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return self.network.event_shape

    def log_density(self, x: jax.Array, t: jax.Array | float) -> jax.Array:
        """Log density of ``x_t``, of shape ``batch``, on the user's scale."""
        return map_over_batch(self._log_density, self.event_shape, x, t)

    def score(self, x: jax.Array, t: jax.Array | float) -> jax.Array:
        """Gradient of :meth:`log_density` in ``x``, of the shape of ``x``."""
        return map_over_batch(jax.grad(self._log_density), self.event_shape, x, t)

    def log_density_and_score(
        self, x: jax.Array, t: jax.Array | float
    ) -> tuple[jax.Array, jax.Array]:
        """Both, from one pass through the network and back."""
        both = jax.value_and_grad(self._log_density)
        return map_over_batch(both, self.event_shape, x, t)

    def energy_standardised(self, z: jax.Array, t: jax.Array) -> jax.Array:
        """``-log p_t(z)`` on the standardised scale; ``z`` (event_shape), ``t`` ()."""
        log_r = _log_noise_to_signal(t, self.noise_range[1])
        correction = jnp.exp(-2.0 * t) * self._correction(z, t, log_r)
        return correction - self.base.log_density(self._residual(z, t), t)

    def _log_density(self, x: jax.Array, t: jax.Array) -> jax.Array:
        t = _clamped_time(t, self.noise_range[0])
        energy = self.energy_standardised((x - self.loc) / self.scale, t)
        return -energy - jnp.sum(jnp.log(self.scale))


class ScoreModel(Conditional):
    r"""A learned score at every noise level, without a density.

    .. math:: \nabla \log p_t(z) = -\nabla E_\text{base}(z, t)
              + (r_t^2 + 0.1^2)^{-1/2} f(z, \log r_t)

    The factor is that of noise prediction, ``1 / r_t``, until the noise is a tenth of
    the data's spread; below it the errors of the network would only be blown up.

    It can be drawn from (``LearnedPrior(model_).sample``, ``RTKULD(score=model_)``,
    ``RTKMALA(score=model_, inner=MALA(acceptance="simpson"))``) and gives posteriors under
    the law that it draws (``RTKParticleGibbs(model)``). Where a log density is needed (an
    exact acceptance, weights, exchanges, ``log_prob`` and hence NUTS), train an
    :class:`EnergyModel`, or make it one by :func:`numpyro_rtk.distill`. Times and
    conditions are treated as there.

    A network that was trained elsewhere, on noise, data, velocities or scores, becomes such
    a density by :meth:`from_network`.

    Attributes:
        network: the learned correction.
        base: of the standardised data: a Gaussian, a mixture of them, or a product of
            mixtures over independent subspaces.
        loc: mean of the data, of ``event_shape``; not trained.
        scale: standard deviation of the data, of ``event_shape``; not trained.
        noise_range: smallest and largest trained noise-to-signal ratio.
        sites: what the values stand for, where they are not one array of real numbers.
        uses_network: False leaves the base alone, and the network is not evaluated.
        conditioning: of a conditional density, else None.
        bound: the standardised condition, once it is given.
    """

    network: AbstractScoreNetwork
    base: NoisedMixture | NoisedProduct
    loc: jax.Array
    scale: jax.Array
    noise_range: tuple[float, float] = eqx.field(static=True)
    sites: tuple[SiteSpec, ...] | None = eqx.field(static=True, default=None)
    uses_network: bool = eqx.field(static=True, default=True)
    conditioning: Conditioning | None = None
    bound: jax.Array | None = None

    @property
    def reach(self) -> None:
        """None: the network sees the standardised position as it is."""
        return

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return self.network.event_shape

    def score(self, x: jax.Array, t: jax.Array | float) -> jax.Array:
        """Gradient in ``x`` of the log density of ``x_t``, of the shape of ``x``."""
        return map_over_batch(self._score, self.event_shape, x, t)

    def score_standardised(self, z: jax.Array, t: jax.Array) -> jax.Array:
        """The score on the standardised scale; ``z`` (event_shape), ``t`` ()."""
        log_r = _log_noise_to_signal(t, self.noise_range[1])
        base = self.base.score(self._residual(z, t), t).reshape(z.shape)
        factor = jax.lax.rsqrt(jnp.expm1(2.0 * t) + 0.01)
        return base + factor * self._correction(z, t, log_r)

    def _score(self, x: jax.Array, t: jax.Array) -> jax.Array:
        t = _clamped_time(t, self.noise_range[0])
        return self.score_standardised((x - self.loc) / self.scale, t) / self.scale

    @staticmethod
    def from_network(
        fn: Callable[..., Any],
        event_shape: tuple[int, ...] | int,
        *,
        predicts: str,
        schedule: Schedule,
        loc: Any = 0.0,
        scale: Any = 1.0,
        batched: bool = False,
        noise_range: tuple[float | None, float | None] | None = None,
    ) -> WrappedScore:
        """The score of a network that was trained elsewhere.

        Where a fitted score can stand, it can: ``LearnedPrior``, ``RTKULD(score=...)``,
        :func:`numpyro_rtk.check_prior` (which finds what was mistaken here),
        :func:`numpyro_rtk.save`. Its arrays are part of the pytree, so that compiled
        programs take them as arguments; arrays that a function encloses cannot be.

        The score is held at the ends of the trained noise: below the smallest
        noise-to-signal ratio r it is that at the smallest, above the largest that at the
        largest. VP, EDM, OU and the flows name no smallest one, and are asked from
        r = 0.01 on.

        Args:
            fn: ``fn(x, time)`` of one item, ``event_shape`` and ``()`` -> ``event_shape``:
                an equinox module, ``functools.partial(apply, params)`` of flax or haiku,
                or any JAX function. ``x`` and ``time`` are the schedule's own.
            event_shape: shape of one item.
            predicts: ``"noise"``, ``"data"``, ``"score"``, or ``"velocity"``: of ``VP``,
                ``DDPM`` and ``OU`` that is ``alpha e - sigma x_0``, of the two flows
                theirs.
            schedule: one of :mod:`numpyro_rtk.schedules`.
            loc: the network was trained on ``(x - loc) / scale``; broadcastable to
                ``event_shape``.
            scale: the same. Runs start at N(loc, scale**2), so that the data should not be
                much wider than that.
            batched: whether ``fn`` wants a leading axis, ``(1, *event_shape)`` and
                ``(1,)``.
            noise_range: smallest and largest noise-to-signal ratio that the network is
                asked at, where it is not the schedule's; an entry of None is open.

        Returns:
            A density with a score alone.

        Raises:
            TypeError: for a ``fn`` that is not callable, or another ``schedule``.
            ValueError: for an unknown ``predicts``, one that the schedule has not
                (velocity with VE), shapes that do not fit, a ``fn`` that returns another
                shape or what is not finite.
        """
        return wrap(
            fn,
            event_shape,
            predicts=predicts,
            schedule=schedule,
            loc=loc,
            scale=scale,
            batched=batched,
            noise_range=noise_range,
        )
