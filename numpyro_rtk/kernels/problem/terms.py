"""A model's log density as NumPyro counts it, kept term by term.

A sum of size 1e7 is resolved to one nat in single precision, and differences of one nat
are what a sampler lives on. Each term is therefore counted from its own value at one
position, the frame's origin, before anything is added up: constants cancel without a
trace, and a million rows leave the rounding of their differences alone.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from numpyro import handlers
from numpyro.distributions import biject_to
from numpyro.infer.util import _unconstrain_reparam, compute_log_probs

__all__ = [
    "Terms",
    "counted_from",
    "log_terms",
    "rounding_of",
    "sum_in_two",
    "sum_of_squares",
]

Terms = dict[str, jax.Array]
"""By site, of whatever shape its ``log_prob`` has."""


def log_terms(
    model: Callable, args: tuple, kwargs: dict, values: dict, hidden: frozenset[str]
) -> tuple[Terms, dict]:
    """What NumPyro's ``potential_energy`` adds up, with a minus, from one run.

    Args:
        model: prepared, see :func:`~numpyro_rtk.kernels.problem.runs.prepared`.
        args: of the model.
        kwargs: likewise.
        values: of all latent sites, unconstrained.
        hidden: sites to leave out, Jacobian and all.

    Returns:
        The terms, and the trace with all sites.
    """

    def choose(site):
        name = site["name"]
        if name in hidden:
            return biject_to(site["fn"].support)(values[name])
        return _unconstrain_reparam(values, site)

    whole = handlers.trace(handlers.substitute(model, substitute_fn=choose))
    rest = handlers.block(whole, hide=list(hidden))
    terms, _ = compute_log_probs(rest, args, kwargs, {}, sum_log_prob=False)
    return terms, whole.trace


def counted_from(origin: Terms, terms: Terms) -> jax.Array:
    """The sum of the terms less those at the origin, each where it is finite there."""
    differences = (jnp.sum(term - _finite(origin[n])) for n, term in terms.items())
    # not 0: a sum of no terms must be a float too, or JAX cannot differentiate it
    return sum(differences, start=jnp.zeros(()))


def sum_of_squares(origin: Terms) -> Terms:
    """Of each site's terms."""
    return {name: jnp.sum(jnp.square(_finite(term))) for name, term in origin.items()}


def rounding_of(squares: Terms, names: frozenset[str] | None = None) -> float:
    """Nats that rounding of the single terms adds up to, by chance; of these sites.

    Sites whose terms do not depend on any latent value cancel: leave them out.
    """
    rounding = 0.0
    for name, square in squares.items():
        if names is None or name in names:
            epsilon = float(jnp.finfo(square.dtype).eps)
            rounding = float(np.hypot(rounding, epsilon * np.sqrt(square)))
    return rounding


def sum_in_two(origin: Terms) -> jax.Array:
    """Sum of all terms as a number and what its rounding leaves out, ``(2,)``.

    By Knuth's two-sum, in pairs: as good as twice the digits.
    """
    flat = [jnp.ravel(_finite(term)) for term in origin.values()]
    high = jnp.concatenate([*flat, jnp.zeros(1)])
    low = jnp.zeros_like(high)
    while len(high) > 1:
        if len(high) % 2:
            high, low = jnp.append(high, 0.0), jnp.append(low, 0.0)
        a, b = high[::2], high[1::2]
        high = a + b
        rest = high - a
        low = low[::2] + low[1::2] + ((a - (high - rest)) + (b - rest))
    return jnp.concatenate([high, low])


def _finite(term: jax.Array) -> jax.Array:
    """A term as a number to count from: 0 where it is none."""
    return jax.lax.stop_gradient(jnp.where(jnp.isfinite(term), term, 0.0))
