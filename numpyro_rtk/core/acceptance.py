r"""The change of a log density along a move: exactly, or from scores alone.

A score network has no energy, so the Metropolis ratio needs
:math:`\log\pi(z') - \log\pi(z) = \int s \cdot dz`. The rules, by accuracy:

- :func:`simpson_curve`: Simpson's rule through three nodes of a curved path; free for a
  two-leapfrog step, which has evaluated the score at all three. Fifth order.
- :func:`simpson_midpoint`: Simpson on the chord, one evaluation more.
- :func:`trapezoid`: the chord's two ends; free, third order.
- :func:`taylor`: the one-sided expansion by finite differences of the RTK paper (arXiv
  2405.16387, section 4 and appendix on score-only MALA). Kept for comparison: it is not
  antisymmetric in the two ends, so it leaves a bias that no step size adaptation sees.
"""

import math

import jax
import jax.numpy as jnp

from numpyro_rtk.core.segment import DensityFn

__all__ = ["RULES", "simpson_curve", "simpson_midpoint", "taylor", "trapezoid"]

RULES = ("energy", "simpson", "trapezoid", "taylor")


def trapezoid(
    start: jax.Array, end: jax.Array, score_start: jax.Array, score_end: jax.Array
) -> jax.Array:
    """``(s + s') . (z' - z) / 2``, a scalar; exact for quadratic log densities."""
    return 0.5 * jnp.dot(score_start + score_end, end - start)


def simpson_midpoint(
    start: jax.Array,
    end: jax.Array,
    score_start: jax.Array,
    score_middle: jax.Array,
    score_end: jax.Array,
) -> jax.Array:
    """Simpson's rule on the chord; exact for quartic log densities."""
    return jnp.dot(score_start + 4.0 * score_middle + score_end, end - start) / 6.0


def simpson_curve(positions: jax.Array, scores: jax.Array) -> jax.Array:
    """Simpson's rule along the parabola through three nodes.

    Args:
        positions: the nodes, ``(3, dim)``, at equal steps of the path's parameter.
        scores: the scores there, ``(3, dim)``.

    Returns:
        The estimate of ``log pi(last) - log pi(first)``, a scalar. It changes its sign
        when the nodes are reversed, so the acceptance stays reversible.
    """
    first, middle, last = positions
    tangents = jnp.stack(
        [
            -3.0 * first + 4.0 * middle - last,
            4.0 * (last - first),
            first - 4.0 * middle + 3.0 * last,
        ]
    )
    return jnp.sum(scores * tangents) / 6.0


def taylor(
    target: DensityFn,
    start: jax.Array,
    end: jax.Array,
    score_start: jax.Array,
    *,
    order: int = 2,
    spacing: float = 0.1,
) -> jax.Array:
    r"""The paper's estimate :math:`\sum_{i \le U} h^{(i)}(0) / i!`.

    Here :math:`h(\tau) = \log\pi(z + \tau (z' - z))`; :math:`h'` comes from the score
    and higher derivatives from forward differences of ``spacing``. Exact for quadratic
    log densities when ``order >= 2``.

    Args:
        target: gives the score; evaluated ``order - 1`` times.
        start: z.
        end: z'.
        score_start: the score at z.
        order: U.
        spacing: the step of the differences, as a fraction of the move.
    """
    move = end - start
    slopes = [jnp.dot(score_start, move)]
    for j in range(1, order):
        slopes.append(jnp.dot(target(start + j * spacing * move).score, move))
    total, differences = slopes[0], slopes
    for i in range(2, order + 1):
        differences = [
            (high - low) / spacing
            for low, high in zip(differences[:-1], differences[1:], strict=True)
        ]
        total = total + differences[0] / math.factorial(i)
    return total
