"""What a student's energy cost in score error, by noise level."""

import math
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from numpyro_rtk.density import Density
from numpyro_rtk.networks.model import EnergyModel
from numpyro_rtk.training.losses import slopes_of_score, variance_exploding

__all__ = ["NUM_POINTS", "ScoreError", "score_error"]

NUM_POINTS = 1_000  # at each level
_NUM_LEVELS, _LARGEST_NOISE = 10, 10.0
_ENOUGH_NOISE = 5.0  # the density is anchored at the largest, by its Gaussian
_BATCH = 256  # points at a time

# What counts as a problem, in nats. Either means log densities off by about half a nat:
# of students of exact scores (benchmarks/densities/distilled.py) the error had an sd of .8
# to 1.05 of sqrt(2 divergence), and of .25 to .45 of the total drift.
_MOST_DIVERGENCE, _MOST_DRIFT = 0.125, 1.5


class ScoreError(NamedTuple):
    """What an energy cost in score error, by noise level; ``print`` it.

    Arrays are by level, smallest noise first, ``(levels,)``, at noised rows that training
    has not seen.

    Attributes:
        noise: noise-to-signal ratios, in units of the student's ``scale``.
        score: root mean square, per coordinate, of the student's score less the
            teacher's, times the noise: of predicted noise of variance 1. 1: nothing was
            learned.
        drift: root mean square of the difference in how fast the log density changes with
            the log of the noise, in nats. The teacher's rate is that of a density with its
            score (a divergence, by two random probes each); where the teacher is no
            exact score, a part of ``drift`` is its own.
        divergence: Kullback-Leibler, in nats, of the student from a density with the
            teacher's score: what ``score`` adds up to over the noise levels. Log densities
            are off by about ``sqrt(2 * divergence)``.
        total_drift: what ``drift`` adds up to, in nats; log densities, and with them the
            weights of modes, are off by about a third of it.
        problems: sentences that say what is wrong and what to change.
    """

    noise: np.ndarray
    score: np.ndarray
    drift: np.ndarray
    divergence: float
    total_drift: float
    problems: tuple[str, ...]

    def __str__(self) -> str:
        """The report."""
        lines = [
            f"{r:5.2f}  {score:11.3f}  {drift:5.3f}"
            for r, score, drift in zip(*self[:3], strict=True)
        ]
        head = "noise  score error  drift"
        total = (
            f"in all: {self.divergence:.2g} nats of divergence, {self.total_drift:.2g} of "
            "drift"
        )
        problems = self.problems or ("nothing found",)
        return "\n".join([head, *lines, total, *(f"- {text}" for text in problems)])

    __repr__ = __str__


def score_error(
    key: jax.Array, model: EnergyModel, teacher: Density, rows: np.ndarray
) -> ScoreError:
    """The report.

    Args:
        key: of the noise and the probes.
        model: the student.
        teacher: with a score.
        rows: that training has not seen, ``(n, *event_shape)`` on the user's scale.
    """
    low, high = model.noise_range
    noise = np.geomspace(low, max(min(high, _LARGEST_NOISE), 2.0 * low), _NUM_LEVELS)
    rows = np.resize(rows, (NUM_POINTS, *rows.shape[1:]))  # few of them several times
    z = jnp.asarray((rows - np.asarray(model.loc)) / np.asarray(model.scale))
    z = z.astype(jnp.float32)
    found = [
        np.asarray(_compared(k, model, teacher, z, jnp.log(jnp.float32(r))))
        for k, r in zip(jr.split(key, len(noise)), noise, strict=True)
    ]
    squared, drift = np.stack(found).T
    score, drift = np.sqrt(squared), np.sqrt(np.maximum(drift, 0.0))
    total = lambda values: float(np.trapezoid(values, np.log(noise)))
    # of two densities d KL / d log r = -(mean square of the difference in noise) dim
    error = ScoreError(
        noise=noise,
        score=score,
        drift=drift,
        divergence=math.prod(model.event_shape) * total(squared),
        total_drift=total(drift),
        problems=(),
    )
    return error._replace(problems=tuple(_problems(error, high)))


def _problems(error: ScoreError, largest_noise: float) -> list[str]:
    """What is wrong, in sentences with their remedy."""
    if not np.all(np.isfinite([error.score, error.drift])):
        return [
            "The score error is not finite: the student's score or the teacher's is not, "
            "at noised rows. Lower `learning_rate`; look at "
            "`rtk.check_prior(score_model, held_out)`."
        ]
    problems = []
    if largest_noise < _ENOUGH_NOISE:
        problems.append(
            f"The noise ends at {largest_noise:.2g} of the samples' spread, where the "
            "density is no Gaussian yet: nothing fixes its integral. Correct `schedule` or "
            "`scale` of the score, or `noise_range`."
        )
    if error.divergence > _MOST_DIVERGENCE:
        worst = int(np.argmax(error.score))
        problems.append(
            f"The score error is large: {error.score[worst]:.2g} at noise "
            f"{error.noise[worst]:.2g}, {error.divergence:.2g} nats of divergence in all: "
            f"log densities are off by about {np.sqrt(2 * error.divergence):.2g}. "
            "Raise `num_steps`, or take a wider `network`; what stays then is no gradient "
            "of a density: train the score longer."
        )
    if error.total_drift > _MOST_DRIFT:
        problems.append(
            f"The log density drifts by {error.total_drift:.2g} nats along the noise, "
            "against a density with this score: weights of separated modes are not to be "
            "trusted. Raise `num_steps`, or take a wider `network`; what stays then is the "
            "score's own fault, which no density has: train the score longer."
        )
    return problems


@eqx.filter_jit
def _compared(
    key: jax.Array, model: EnergyModel, teacher: Density, z: jax.Array, log_r: jax.Array
) -> jax.Array:
    """Mean squared differences of the scores and of the rates, ``(2,)``."""
    key_noise, key_probe = jr.split(key)
    y = z + jnp.exp(log_r) * jr.normal(key_noise, z.shape, z.dtype)
    slopes = jax.grad(variance_exploding, argnums=(1, 2))

    def one(pair):
        y, key = pair
        by_point, by_noise = slopes(model, y, log_r)
        probes = jr.rademacher(key, (2, *y.shape), y.dtype)
        noise, rates = jax.vmap(
            lambda probe: slopes_of_score(teacher, model, y, log_r, probe)
        )(probes)
        # of two independent probes the product has no part of their own variance
        off = jnp.prod(by_noise - rates)
        return jnp.stack([jnp.mean((jnp.exp(log_r) * by_point - noise[0]) ** 2), off])

    pairs = y, jr.split(key_probe, len(y))
    found = jax.lax.map(one, pairs, batch_size=_BATCH)
    return jnp.mean(found, axis=0)
