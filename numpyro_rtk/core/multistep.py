r"""A deterministic predictor that crosses the noisy levels, fitted to the density.

On the Ornstein-Uhlenbeck process a score gives the mean of the clean value by Tweedie's
formula, :math:`D = (x + s^2 \nabla\log\pi(x)) / a`. A linear multistep rule goes from
level k to level k - 1 by

.. math:: x_{k-1} = c_k x_k + \sum_{j \ge 0} b_{kj} D_{k+j}

for one evaluation a step. *By theory* (:func:`multistep_between`) it is DPM-Solver++ (2M)
(Lu et al., 2022, arXiv 2211.01095),

.. math:: c_k = \frac{s_{k-1}}{s_k}, \qquad
          \sum_j b_{kj} D_{k+j} = (a_{k-1} - c_k a_k)
          \Bigl(D_k + \frac{h_k}{2 h_{k+1}} (D_k - D_{k+1})\Bigr),

where :math:`h_k = \lambda_{k-1} - \lambda_k`, :math:`\lambda = \log(a / s)`; the
difference is left out in the first step and in the last. *Fitted*
(:func:`fit_multistep`), its coefficients are those of least squares along finely solved
trajectories of the same density, step after step from where the rule itself has come to,
drawn towards 2M by a ridge. In a few wide steps it is then several times as accurate.
(Coefficients of solvers have been fitted before, by gradient descent: Shaul et al.,
*Bespoke Solvers*, ICLR 2024, arXiv 2310.19075.)

The rule has no density, so a run that uses it has no weight; a Gaussian start
(``segment.py``) has one, and is of first order.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from numpyro_rtk.noise import noise_variance, signal

__all__ = [
    "Flow",
    "Multistep",
    "clean_mean",
    "fit_multistep",
    "multistep_between",
    "predict",
    "probability_flow",
    "remember",
]

# The last fine step above level 0 ends at this noise-to-signal ratio, or at a tenth of
# level 1's where that is less.
_SMALLEST_NOISE = 0.01
_FINE_STEPS = 64  # of a whole trajectory, at least
_LEAST_FINE_STEPS = 4  # of one segment
# Pull of the theory's coefficients, against mean squares of about 1.
_RIDGE = 1e-4


class Multistep(NamedTuple):
    """Coefficients of one step, or of all with leading axis K; see the module.

    Attributes:
        clean_x: factor of x in the clean value's mean, ``1 / a_k``.
        clean_score: factor of the score there, ``s_k**2 / a_k``.
        keep: factor of x in the step.
        clean: factors ``(K,)`` of the clean values, that of level k first, then those of
            the levels above.
    """

    clean_x: jax.Array
    clean_score: jax.Array
    keep: jax.Array
    clean: jax.Array


class Flow(NamedTuple):
    """Trajectories of the probability flow at the levels of a ladder.

    Attributes:
        position: ``(K + 1, n, dim)``, level 0 first.
        score: there, ``(K + 1, n, dim)``.
    """

    position: jax.Array
    score: jax.Array


def multistep_between(t: jax.Array) -> Multistep:
    """DPM-Solver++ (2M) down a ladder of OU times ``(K + 1,)``, level 0 first.

    The step to level 0 would have an infinite slope; it is given none, and is Tweedie's
    mean.
    """
    num_segments = t.shape[0] - 1
    a, variance = signal(t), noise_variance(t)
    s = jnp.sqrt(variance)
    keep = s[:-1] / s[1:]
    # lambda at level 0 is infinite: h_1 is not used
    steps = -jnp.diff(jnp.log(a[1:]) - jnp.log(s[1:]))
    zero = jnp.zeros(1, t.dtype)
    slope = jnp.concatenate([zero, 0.5 * steps[:-1] / steps[1:], zero])[-num_segments:]
    latest = a[:-1] - keep * a[1:]
    clean = jnp.zeros((num_segments, max(num_segments, 2)), t.dtype)
    clean = clean.at[:, 0].set(latest * (1.0 + slope))
    clean = clean.at[:, 1].set(-latest * slope)
    return Multistep(
        clean_x=1.0 / a[1:],
        clean_score=variance[1:] / a[1:],
        keep=keep,
        clean=clean[:, :num_segments],
    )


def clean_mean(step: Multistep, x: jax.Array, score: jax.Array) -> jax.Array:
    """Mean of the clean value given ``x`` at the step's upper level, by Tweedie."""
    return step.clean_x * x + step.clean_score * score


def remember(cleans: jax.Array, latest: jax.Array) -> jax.Array:
    """Clean values ``(K, ...)`` with the latest put first and the oldest dropped."""
    return jnp.concatenate([latest[None], cleans[:-1]])


def predict(step: Multistep, x: jax.Array, cleans: jax.Array) -> jax.Array:
    """The state at the lower level, of the shape of ``x``.

    Args:
        step: the coefficients.
        x: state at the upper level.
        cleans: :func:`clean_mean` there and at the levels above, ``(K, *x.shape)``;
            zeros for those above the top.
    """
    return step.keep * x + jnp.tensordot(step.clean, cleans, axes=1)


def probability_flow(
    score: Callable[[jax.Array, jax.Array], jax.Array],
    times: np.ndarray,
    top: jax.Array,
) -> Flow:
    """Trajectories of the flow from given tops, solved in many fine 2M steps.

    Args:
        score: ``(positions (n, dim), time ()) -> (n, dim)``.
        times: ladder, ``(K + 1,)``, level 0 first.
        top: draws of N(0, I), ``(n, dim)``.
    """
    fine = jnp.asarray(_fine_times(times), top.dtype)  # (K, M + 1), noisiest first
    a, s = signal(fine), jnp.sqrt(noise_variance(fine))
    log_snr = jnp.log(a) - jnp.log(s)

    def step(carry, inputs):
        x, last_clean, last_width = carry
        t, (a_t, a_u), (s_t, s_u), (high, low) = inputs
        value = score(x, t)
        clean = (x + s_t**2 * value) / a_t
        width = low - high
        slope = jnp.where(last_width > 0.0, 0.5 * width / last_width, 0.0)
        target = clean + slope * (clean - last_clean)
        x_next = s_u / s_t * x + (a_u - s_u / s_t * a_t) * target
        return (x_next, clean, width), value

    def segment(carry, inputs):
        first = carry[0]
        carry, values = jax.lax.scan(step, carry, inputs)
        return carry, (first, values[0])

    pairs = lambda rows: jnp.stack([rows[:, :-1], rows[:, 1:]], axis=-1)
    inputs = (fine[:, :-1], pairs(a), pairs(s), pairs(log_snr))
    # the first step has no slope, whatever stands for its former clean value
    start = (top, jnp.zeros_like(top), jnp.ones((), top.dtype) * -1.0)
    (x, _, _), (positions, scores) = jax.lax.scan(segment, start, inputs)
    last = fine[-1, -1]
    end = (x + noise_variance(last) * score(x, last)) / signal(last)
    at_end = score(end, jnp.zeros((), top.dtype))
    down = lambda leaf, final: jnp.concatenate([final[None], leaf[::-1]])
    return Flow(down(positions, end), down(scores, at_end))


def _fine_times(times: np.ndarray) -> np.ndarray:
    """Each segment cut evenly in the log of the noise, ``(K, M + 1)``, noisiest first."""
    noise = np.sqrt(np.expm1(2.0 * np.asarray(times, float)))
    noise[0] = min(_SMALLEST_NOISE, 0.1 * noise[1])
    num = max(_LEAST_FINE_STEPS, int(np.ceil(_FINE_STEPS / (len(times) - 1))))
    cuts = [
        np.geomspace(high, low, num + 1)
        for low, high in zip(noise[:-1], noise[1:], strict=True)
    ]
    return 0.5 * np.log1p(np.square(np.stack(cuts[::-1])))


def fit_multistep(
    score: Callable[[jax.Array, jax.Array], jax.Array], times: np.ndarray, flow: Flow
) -> Multistep:
    """Coefficients of least squares along trajectories; see the module.

    A trajectory with a value that is not finite, or farther than 100 from the centre,
    does not count.

    Args:
        score: ``(positions (n, dim), time ()) -> (n, dim)``.
        times: ladder, ``(K + 1,)``, level 0 first.
        flow: trajectories of the same density at these times.
    """
    top = flow.position[-1]
    t = jnp.asarray(times, top.dtype)
    theory = multistep_between(t)
    sane = jnp.all(jnp.abs(flow.position) < 100.0, axis=(0, 2))  # False for NaN

    def body(carry, inputs):
        x, cleans = carry
        step, time, goal = inputs
        cleans = remember(cleans, clean_mean(step, x, score(x, time)))
        values = jnp.concatenate([x[None], cleans])
        usable = sane & jnp.all(jnp.abs(values) < 1e3, axis=(0, 2))
        values = jnp.where(usable[None, :, None], values, 0.0)
        rows = values.reshape(len(values), -1)
        misfit = jnp.where(usable[:, None], goal - predict(step, x, cleans), 0.0)
        count = jnp.maximum(jnp.sum(usable), 1) * x.shape[1]
        gram = rows @ rows.T / count + _RIDGE * jnp.eye(len(rows), dtype=x.dtype)
        change = jnp.linalg.solve(gram, rows @ misfit.ravel() / count)
        fitted = step._replace(
            keep=step.keep + change[0], clean=step.clean + change[1:]
        )
        return (predict(fitted, x, cleans), cleans), fitted

    cleans = jnp.zeros((len(t) - 1, *top.shape), top.dtype)
    inputs = (theory, t[1:], flow.position[:-1])
    return jax.lax.scan(body, (top, cleans), inputs, reverse=True)[1]
