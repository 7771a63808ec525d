r"""A deterministic second-order predictor for the noisy part of a run.

On the Ornstein-Uhlenbeck process a score gives the mean of the clean value by Tweedie's
formula, :math:`D = (x + s^2 \nabla\log\pi(x)) / a`. DPM-Solver++ (2M) (Lu et al., 2022,
arXiv 2211.01095) solves the probability flow with it,

.. math:: x_{k-1} = \frac{s_{k-1}}{s_k} x_k
          + \Bigl(a_{k-1} - \frac{s_{k-1}}{s_k} a_k\Bigr)
            \Bigl(D_k + \frac{h_k}{2 h_{k+1}} (D_k - D_{k+1})\Bigr),

where :math:`h_k = \lambda_{k-1} - \lambda_k`, :math:`\lambda = \log(a / s)`, and the
difference is left out in the first step. It is exact for a point mass, of second order
in h, and costs one evaluation a step. It has no density, so a run that uses it has no
weight; a Gaussian start (``segment.py``) has one, and is of first order.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from numpyro_rtk.noise import noise_variance, signal

__all__ = ["Multistep", "clean_mean", "multistep_between", "predict"]


class Multistep(NamedTuple):
    """Coefficients of one step, or of all with leading axis K; see the module.

    Attributes:
        clean_x: factor of x in the clean value's mean, ``1 / a_k``.
        clean_score: factor of the score there, ``s_k**2 / a_k``.
        keep: factor of x in the step, ``s_{k-1} / s_k``.
        clean: factor of the clean value.
        slope: factor of its last change; 0 in the first step.
    """

    clean_x: jax.Array
    clean_score: jax.Array
    keep: jax.Array
    clean: jax.Array
    slope: jax.Array


def multistep_between(t: jax.Array) -> Multistep:
    """The steps down a ladder of OU times ``(K + 1,)``, level 0 first.

    The step to level 0 would have an infinite slope; it is given none.
    """
    a, variance = signal(t), noise_variance(t)
    s = jnp.sqrt(variance)
    keep = s[:-1] / s[1:]
    # lambda at level 0 is infinite: h_1 is not used
    steps = -jnp.diff(jnp.log(a[1:]) - jnp.log(s[1:]))
    zero = jnp.zeros(1, t.dtype)
    slope = jnp.concatenate([zero, 0.5 * steps[:-1] / steps[1:], zero])
    return Multistep(
        clean_x=1.0 / a[1:],
        clean_score=variance[1:] / a[1:],
        keep=keep,
        clean=a[:-1] - keep * a[1:],
        slope=slope[-t.shape[0] + 1 :],
    )


def clean_mean(step: Multistep, x: jax.Array, score: jax.Array) -> jax.Array:
    """Mean of the clean value given ``x`` at the step's upper level, by Tweedie."""
    return step.clean_x * x + step.clean_score * score


def predict(
    step: Multistep, x: jax.Array, clean: jax.Array, change: jax.Array
) -> jax.Array:
    """The state at the lower level, ``(dim,)``.

    Args:
        step: the coefficients.
        x: state at the upper level.
        clean: :func:`clean_mean` there.
        change: ``clean`` minus that of the level above.
    """
    return step.keep * x + step.clean * (clean + step.slope * change)
