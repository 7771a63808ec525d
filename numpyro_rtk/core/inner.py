"""What every inner sampler looks like: the same shape, so they are interchangeable.

An inner sampler moves a point under a target given as a :data:`DensityFn`. Each lives
in a file of its own (``mala.py``, ``uld.py``) as a subclass of :class:`InnerSampler`. To
add one, write one more such file and add it to the table in ``tests/core/test_inner.py``;
outside of the package, give an instance of one's own to a kernel as ``inner=``.
"""

import math
from abc import ABC, abstractmethod
from itertools import accumulate
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.lax import erf_inv

from numpyro_rtk.core.covariance import stretch as stretch
from numpyro_rtk.core.segment import DensityFn, Evaluation

__all__ = [
    "LARGEST_ENERGY_ERROR",
    "InnerInfo",
    "InnerNoise",
    "InnerSampler",
    "InnerState",
    "StepNoise",
    "accept",
    "accept_probability",
    "check_inner",
    "draw_noise",
    "draw_numbers",
    "normal_shapes",
    "take_steps",
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


class StepNoise(NamedTuple):
    """Random numbers of one step: standard normals ``(n, dim)`` and a uniform ``()``."""

    normal: jax.Array
    uniform: jax.Array


class InnerNoise(NamedTuple):
    """Random numbers of a start, ``(n, dim)``, and of ``steps``, with a leading axis."""

    start: jax.Array
    steps: StepNoise


class InnerState(NamedTuple):
    """``position`` ``(dim,)`` and the target's evaluation there."""

    position: jax.Array
    evaluation: Evaluation


class InnerSampler(ABC):
    """An inner sampler: ``step``, and facts about it.

    A subclass is best a frozen dataclass of its options, so that samplers of equal
    options are equal; it says what differs from the values here.

    Attributes:
        normals_per_start: standard normals per coordinate that ``init`` takes.
        normals_per_step: those that a step takes.
        evals_per_step: evaluations of the target that a step costs.
        is_adjusted: whether a step leaves the target invariant, but for an error of an
            acceptance that is estimated.
        uses_energy: whether acceptance reads the log density (not the score alone).
        largest_step: step size beyond which a longer step moves less on a Gaussian (a
            leapfrog path turns back after a quarter period); adaptation stops there.

    An adjusted step is reversible once the auxiliary variables are drawn anew by
    ``init`` and dropped at the end; the upward pass of the annealed run relies on it.
    """

    normals_per_start: int = 0
    normals_per_step: int = 1
    evals_per_step: int = 1
    is_adjusted: bool = True
    uses_energy: bool = True
    largest_step: float = 10.0

    @property
    def is_exact(self) -> bool:
        """Whether a step leaves the target exactly invariant."""
        return self.is_adjusted and self.uses_energy

    def init(
        self, noise: jax.Array, position: jax.Array, evaluation: Evaluation
    ) -> Any:
        """The first state; evaluates nothing.

        States are NamedTuples with at least ``position`` and ``evaluation``.

        Args:
            noise: standard normals, ``(normals_per_start, dim)``.
            position: ``(dim,)``.
            evaluation: of the target there.
        """
        return InnerState(position, evaluation)

    @abstractmethod
    def step(
        self,
        noise: StepNoise,
        state: Any,
        target: DensityFn,
        step_size: jax.Array,
        scale: jax.Array,
    ) -> tuple[Any, InnerInfo]:
        """One step.

        Args:
            noise: standard normals ``(normals_per_step, dim)`` and a uniform.
            state: where from.
            target: to sample from; called ``evals_per_step`` times.
            step_size: dimensionless, in units of ``scale``.
            scale: the target's spread: per coordinate ``(dim,)``, or a root of its
                covariance ``(dim, dim)``.

        Returns:
            The next state, and what there is to say of the step.
        """


def check_inner(inner: Any) -> None:
    """Raise unless ``inner`` is an inner sampler."""
    if not isinstance(inner, InnerSampler):
        raise TypeError(
            "`inner` must be an inner sampler, such as `rtk.MALA()` or `rtk.ULD()`, or an "
            "instance of a subclass of `numpyro_rtk.core.inner.InnerSampler`; got "
            f"{inner!r}."
        )


def draw_noise(
    key: jax.Array,
    inner: InnerSampler,
    shape: tuple[int, ...],
    num_steps: int,
    dim: int,
    dtype: Any,
) -> InnerNoise:
    """What chains of an inner sampler need, for many of them in one call.

    Drawn at once and outside of loops: on a CPU the generator's own loop, many times
    over, costs more than a small network.

    Args:
        key: PRNG key.
        inner: the sampler.
        shape: leading axes, one chain for each entry.
        num_steps: steps of a chain.
        dim: length of a position.
        dtype: of the numbers.
    """
    normals = normal_shapes(inner, num_steps, dim)
    (start, steps), (uniform,) = draw_numbers(
        key, shape, normals, [(num_steps,)], dtype
    )
    return InnerNoise(start, StepNoise(steps, uniform))


def normal_shapes(inner: InnerSampler, num_steps: int, dim: int) -> list[tuple]:
    """Shapes of the standard normals of a chain: of its start, and of its steps."""
    return [
        (inner.normals_per_start, dim),
        (num_steps, inner.normals_per_step, dim),
    ]


def draw_numbers(
    key: jax.Array,
    leading: tuple[int, ...],
    normals: list[tuple],
    uniforms: list[tuple],
    dtype: Any,
) -> tuple[list[jax.Array], list[jax.Array]]:
    """Standard normals and uniforms of the given shapes, each with ``leading``.

    From one call of the generator, which takes a third of a second to compile: uniform
    numbers on (-1, 1), of which some become normals as in ``jax.random.normal``.
    """
    shapes = [*normals, *uniforms]
    sizes = [math.prod(shape) for shape in shapes]
    lowest = np.nextafter(np.asarray(-1.0, dtype), np.asarray(0.0, dtype))
    flat = jr.uniform(key, (*leading, sum(sizes)), dtype, lowest, 1.0)
    num = sum(sizes[: len(normals)])
    flat = jnp.concatenate(
        [math.sqrt(2.0) * erf_inv(flat[..., :num]), 0.5 * (flat[..., num:] + 1.0)],
        axis=-1,
    )
    parts = [
        part.reshape((*leading, *shape))
        for part, shape in zip(
            jnp.split(flat, list(accumulate(sizes))[:-1], axis=-1), shapes, strict=True
        )
    ]
    return parts[: len(normals)], parts[len(normals) :]


def take_steps(
    noise: InnerNoise,
    position: jax.Array,
    evaluation: Evaluation,
    target: DensityFn,
    inner: InnerSampler,
    num_steps: int,
    step_size: jax.Array,
    scale: jax.Array,
) -> tuple[Any, tuple[jax.Array, jax.Array]]:
    """The state after ``num_steps`` > 0 steps, their mean acceptance, any divergence.

    ``noise`` is for as many steps or more; all else as in :class:`InnerSampler`.
    """

    def body(state, random):
        state, info = inner.step(random, state, target, step_size, scale)
        return state, (info.accept_prob, info.is_diverging)

    state = inner.init(noise.start, position, evaluation)
    if num_steps == 1:
        only = jax.tree.map(lambda leaf: leaf[0], noise.steps)
        state, (accept_prob, is_diverging) = body(state, only)
    else:
        each = jax.tree.map(lambda leaf: leaf[:num_steps], noise.steps)
        state, (accept_prob, is_diverging) = jax.lax.scan(body, state, each)
    return state, (jnp.mean(accept_prob), jnp.any(is_diverging))


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


def unstretch_score(scale: jax.Array, score: jax.Array) -> jax.Array:
    """A gradient in the target's coordinates, as one in the sampler's."""
    return scale * score if scale.ndim == 1 else scale.T @ score
