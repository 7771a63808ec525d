"""What every inner sampler looks like: the same shape, so they are interchangeable.

An inner sampler moves a point under a target given as a :data:`DensityFn`. Each lives
in a file of its own (``mala.py``, ``uld.py``) as a builder that returns an
:class:`InnerSampler`. To add one, write one more such file and add it to the table in
``tests/core/test_inner.py``.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from numpyro_rtk.core.segment import Evaluation

__all__ = [
    "LARGEST_ENERGY_ERROR",
    "InnerInfo",
    "InnerSampler",
    "accept",
    "accept_probability",
]

# NumPyro's and Stan's threshold for a divergence: an energy error of 1,000 nats.
LARGEST_ENERGY_ERROR = 1000.0


class InnerInfo(NamedTuple):
    """What one step reports; all scalars.

    ``accept_prob`` is 1 for unadjusted steps. ``is_diverging`` marks a step whose
    target or energy error was not finite or beyond 1,000 nats; such a step is refused,
    but for one that leaves a point without density.
    """

    accept_prob: jax.Array
    is_accepted: jax.Array
    is_diverging: jax.Array


class InnerSampler(NamedTuple):
    """An inner sampler.

    Attributes:
        init: ``(key, position, evaluation) -> state``; evaluates nothing.
        step: ``(key, state, target, step_size, scale) -> (state, info)``. ``step_size``
            is dimensionless, ``scale`` the target's spread: per coordinate ``(dim,)``,
            or a root of its covariance ``(dim, dim)``.
        evals_per_step: evaluations of the target that a step costs.
        is_adjusted: whether a step leaves the target exactly invariant.
        uses_energy: whether acceptance reads the log density (not the score alone).
        largest_step: step size beyond which a longer step moves less on a Gaussian (a
            leapfrog path turns back after a quarter period); adaptation stops there.

    States are NamedTuples with at least ``position`` and ``evaluation``. An adjusted
    step is reversible once the auxiliary variables are drawn anew by ``init`` and
    dropped at the end; the upward pass of the annealed run relies on it.
    """

    init: Callable[[jax.Array, jax.Array, Evaluation], Any]
    step: Callable[..., tuple[Any, InnerInfo]]
    evals_per_step: int
    is_adjusted: bool
    uses_energy: bool
    largest_step: float


def accept_probability(log_ratio: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Metropolis probability and divergence flag of a log ratio; NaN is refused."""
    is_finite = jnp.isfinite(log_ratio)
    is_diverging = ~is_finite | (log_ratio < -LARGEST_ENERGY_ERROR)
    # +inf (from a state of zero density) must be accepted, NaN and -inf refused.
    usable = jnp.where(jnp.isnan(log_ratio), -jnp.inf, log_ratio)
    return jnp.exp(jnp.minimum(usable, 0.0)), is_diverging


def accept(is_accepted: jax.Array, proposed: Any, current: Any) -> Any:
    """``proposed`` where accepted, else ``current``; any pytree."""
    return jax.tree.map(lambda p, c: jnp.where(is_accepted, p, c), proposed, current)


def stretch(scale: jax.Array, vector: jax.Array) -> jax.Array:
    """From the sampler's coordinates ``(dim,)`` to the target's."""
    return scale * vector if scale.ndim == 1 else scale @ vector


def unstretch_score(scale: jax.Array, score: jax.Array) -> jax.Array:
    """A gradient in the target's coordinates, as one in the sampler's."""
    return scale * score if scale.ndim == 1 else scale.T @ score
