r"""The noising process and its ladders.

Everything in the package shares one forward process, the Ornstein-Uhlenbeck process
on standardised data,

.. math:: dx = -x\,dt + \sqrt{2}\,dB, \qquad
          x_t = a_t x_0 + s_t e, \quad e \sim N(0, I),

with :math:`a_t = e^{-t}` and :math:`s_t^2 = 1 - e^{-2t}`. Time ``t`` is dimensionless
(*OU time*): 0 is the data, and at ``t = 3`` 99.75 % of the variance is noise. A
*ladder* is an increasing array of times ``(K + 1,)`` from 0 to the horizon ``T``; its
``K`` intervals are the *segments* that the reverse transition kernels cross.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from numpyro_rtk._checks import check_positive, check_positive_int

__all__ = [
    "Ladder",
    "angle_ladder",
    "as_ladder",
    "as_levels",
    "log_snr_ladder",
    "noise_to_signal",
    "noise_variance",
    "refined",
    "refined_to",
    "signal",
    "time_from_noise_to_signal",
    "uniform_ladder",
]

Ladder = str | Callable[[int], np.ndarray] | np.ndarray | jax.Array | list | tuple


def signal(t: jax.Array) -> jax.Array:
    """The signal's factor ``a_t = exp(-t)``; same shape as ``t`` (OU time)."""
    return jnp.exp(-t)


def noise_variance(t: jax.Array) -> jax.Array:
    """The noise's variance ``s_t**2 = 1 - exp(-2 t)``; accurate for small ``t``."""
    return -jnp.expm1(-2.0 * t)


def noise_to_signal(t: jax.Array) -> jax.Array:
    """``r_t = s_t / a_t = sqrt(exp(2 t) - 1)``, the noise's sd on the data's scale."""
    return jnp.sqrt(jnp.expm1(2.0 * t))


def time_from_noise_to_signal(r: jax.Array) -> jax.Array:
    """The inverse of :func:`noise_to_signal`: ``t = log(1 + r**2) / 2``."""
    return 0.5 * jnp.log1p(jnp.square(r))


def refined(times: Any) -> jax.Array:
    """A ladder ``(K + 1,)`` with a level in each segment, midway in the angle ``arctan r``.

    Returns:
        ``(2 K + 1,)``.
    """
    t = jnp.asarray(times)
    angle = jnp.arctan(noise_to_signal(t))
    middle = time_from_noise_to_signal(jnp.tan(0.5 * (angle[:-1] + angle[1:])))
    return jnp.append(jnp.stack([t[:-1], middle], axis=1).ravel(), t[-1])


def refined_to(times: Any, num_segments: int) -> jax.Array:
    """The same, as often as it takes to have so many segments or more."""
    t = jnp.asarray(times)
    return t if len(t) > num_segments else refined_to(refined(t), num_segments)


def uniform_ladder(num_segments: int, horizon: float = 3.0) -> np.ndarray:
    """Equal segments in OU time: the ladder of the RTK paper (arXiv 2405.16387).

    Kept for reproduction. Its last segment is so wide that an inner chain cannot cross
    between modes in it, as those of no kernel's default does.

    Args:
        num_segments: K, at least 1.
        horizon: T, in OU time.

    Returns:
        Times of shape ``(K + 1,)``, from 0 to ``horizon``.
    """
    check_positive_int("num_segments", num_segments)
    check_positive("horizon", horizon)
    return np.linspace(0.0, horizon, num_segments + 1)


def log_snr_ladder(
    num_segments: int, horizon: float = 3.0, smallest_noise: float = 0.05
) -> np.ndarray:
    """Levels uniform in the log signal-to-noise ratio, dense near the data.

    The default of :class:`~numpyro_rtk.RTKReplicaExchange`, whose warm-up moves the
    levels, and of the other kernels with a ``model``: a precise likelihood switches on at
    small noise.

    The levels above 0 have ``log r_t`` equally spaced between ``smallest_noise`` and
    the noise-to-signal ratio of the horizon; the last segment goes from
    ``smallest_noise`` to 0 in one step.

    Args:
        num_segments: K, at least 1.
        horizon: T, in OU time.
        smallest_noise: noise-to-signal ratio of the first level above 0, on the
            standardised scale (1 is the data's standard deviation).

    Returns:
        Times of shape ``(K + 1,)``, from 0 to ``horizon``.
    """
    largest_noise = _check_noise_range(num_segments, horizon, smallest_noise)
    return _from_noise(
        np.geomspace(smallest_noise, largest_noise, num_segments), horizon
    )


def angle_ladder(
    num_segments: int, horizon: float = 3.0, smallest_noise: float = 0.1
) -> np.ndarray:
    """Levels uniform in the angle ``arctan r_t``.

    The default of :class:`~numpyro_rtk.RTKMALA` and :class:`~numpyro_rtk.RTKULD` with
    ``score=``, and of ``LearnedPrior.sample``.

    In this angle the signal is a cosine and the noise a sine (the cosine schedule of
    Nichol & Dhariwal, ICML 2021, arXiv 2102.09672). Against :func:`log_snr_ladder` it
    puts the levels where the noise is comparable to the data and modes are chosen, not
    where nearly nothing changes.

    Args:
        num_segments: K, at least 1.
        horizon: T, in OU time.
        smallest_noise: noise-to-signal ratio of the first level above 0, on the
            standardised scale (1 is the data's standard deviation).

    Returns:
        Times of shape ``(K + 1,)``, from 0 to ``horizon``.
    """
    largest_noise = _check_noise_range(num_segments, horizon, smallest_noise)
    angles = np.linspace(
        np.arctan(smallest_noise), np.arctan(largest_noise), num_segments
    )
    return _from_noise(np.tan(angles), horizon)


def _check_noise_range(
    num_segments: int, horizon: float, smallest_noise: float
) -> float:
    check_positive_int("num_segments", num_segments)
    check_positive("horizon", horizon)
    check_positive("smallest_noise", smallest_noise)
    largest_noise = float(np.sqrt(np.expm1(2.0 * horizon)))
    if smallest_noise >= largest_noise:
        raise ValueError(
            f"`smallest_noise` must be below the horizon's noise-to-signal ratio "
            f"{largest_noise:.3g}; got {smallest_noise!r}."
        )
    return largest_noise


def _from_noise(noise: np.ndarray, horizon: float) -> np.ndarray:
    times = 0.5 * np.log1p(noise**2)
    times[-1] = horizon  # not the horizon up to rounding; all there is for one segment
    return np.concatenate([[0.0], times])


def as_ladder(ladder: Ladder, num_segments: int) -> np.ndarray:
    """Turn the kernels' ``ladder=`` option into an array of times, checked.

    Args:
        ladder: ``"angle"``, ``"log_snr"``, ``"uniform"`` (the paper's), a function of
            the number of segments, or the times themselves.
        num_segments: K; ignored when ``ladder`` gives the times.

    Returns:
        Times of shape ``(K + 1,)``, a NumPy array (ladders are fixed at trace time).

    Raises:
        ValueError: unless the times are one-dimensional, finite, start at 0 and
            increase strictly.
    """
    named = {
        "angle": angle_ladder,
        "log_snr": log_snr_ladder,
        "uniform": uniform_ladder,
    }
    if isinstance(ladder, str):
        if ladder not in named:
            raise ValueError(
                f"`ladder` must be one of {sorted(named)}, a function or an array of "
                f"times; got {ladder!r}."
            )
        times = named[ladder](num_segments)
    elif callable(ladder):
        times = np.asarray(ladder(num_segments), dtype=float)
    else:
        times = np.asarray(ladder, dtype=float)
    if times.ndim != 1 or times.shape[0] < 2 or not np.all(np.isfinite(times)):
        raise ValueError(
            "`ladder` must be a one-dimensional array of at least two finite times; "
            f"got {times!r}."
        )
    if times[0] != 0.0:
        raise ValueError(
            f"`ladder` must start at 0 (the data); got {times[0]!r}. Prepend a 0."
        )
    if not np.all(np.diff(times) > 0.0):
        raise ValueError(
            f"`ladder` must increase strictly from 0 to the horizon; got {times!r}."
        )
    return times


def as_levels(ladder: Ladder, num_levels: int | None, default: int) -> np.ndarray:
    """The same of kernels that have ``num_levels=`` as well: both must agree.

    Args:
        ladder: as of :func:`as_ladder`.
        num_levels: K, or None where it was not given.
        default: what K is then, where the ladder does not say.

    Raises:
        ValueError: where both are given and differ.
    """
    times = as_ladder(ladder, default if num_levels is None else num_levels)
    if num_levels is not None and len(times) != num_levels + 1:
        raise ValueError(
            f"`ladder` must have `num_levels` + 1 = {num_levels + 1} times; got "
            f"{len(times)}. Give one of the two."
        )
    return times
