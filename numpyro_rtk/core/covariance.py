"""Covariances as matrices ``(K, dim, dim)`` or diagonals ``(K, dim)``, and their roots.

Which of them it is follows from the number of axes; K may count levels, edges or modes.
"""

import jax
import jax.numpy as jnp

__all__ = [
    "definite",
    "diagonal_of",
    "inverse_rooted",
    "like",
    "rooted",
    "roots",
    "shrunk",
    "stretch",
]

_SMALLEST_VARIANCE, _TINY = 1e-12, 1e-30
# Added to a diagonal, as a part of it: what a Cholesky root in float32 needs.
_RIDGE = 1e-5


def diagonal_of(matrices: jax.Array) -> jax.Array:
    """The variances ``(K, dim)`` of covariances."""
    if matrices.ndim == 2:
        return matrices
    return jnp.diagonal(matrices, axis1=-2, axis2=-1)


def like(scalars: jax.Array, rows: jax.Array) -> jax.Array:
    """``(K,)`` with as many axes as the rows have."""
    return scalars.reshape((-1,) + (1,) * (rows.ndim - 1))


def stretch(root: jax.Array, vector: jax.Array) -> jax.Array:
    """A root ``(dim,)`` or ``(dim, dim)`` applied to a vector ``(dim,)``."""
    return root * vector if root.ndim == 1 else root @ vector


def shrunk(covariance: jax.Array, count: jax.Array) -> jax.Array:
    """Correlations pulled to 0 as far as they may be sampling noise.

    n draws of d coordinates give d (d - 1) spurious squared correlations of 1 / n each:
    at d = 64 a few hundred draws of a full covariance would cost an exchange several
    nats. The factor is the one of least expected squared error (Schafer & Strimmer,
    *Statistical Applications in Genetics and Molecular Biology*, 2005).
    """
    if covariance.ndim == 2:
        return covariance
    dim = covariance.shape[-1]
    variance = jnp.maximum(jnp.diagonal(covariance, axis1=-2, axis2=-1), _TINY)
    sd = jnp.sqrt(variance)
    # of two or three draws a variance may be rounded to below 0
    correlation = jnp.clip(covariance / (sd[:, :, None] * sd[:, None, :]), -1.0, 1.0)
    off = 1.0 - jnp.eye(dim, dtype=covariance.dtype)[None]
    observed = jnp.sum(jnp.square(correlation) * off, axis=(-2, -1))
    spurious = dim * (dim - 1.0) / jnp.maximum(count, 1.0)
    keep = jnp.clip(1.0 - spurious / jnp.maximum(observed, _TINY), 0.0, 1.0)
    return covariance * (1.0 - off + jnp.reshape(keep, (-1, 1, 1)) * off)


def definite(matrices: jax.Array) -> jax.Array:
    """With a little on the diagonal, so that there is a Cholesky root.

    A part of each coordinate's own variance: a root does not mind different units, and
    where one coordinate is known a million times better the other keeps its size.
    """
    eye = jnp.eye(matrices.shape[-1], dtype=matrices.dtype)[None]
    return matrices + (_RIDGE * matrices + _TINY) * eye


def roots(matrices: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Lower Cholesky roots of ``(K, dim, dim)``, and their inverses.

    Written out, since two batched LAPACK calls at a time can deadlock on the CPU: each
    waits on the one thread pool that both run in (seen with jaxlib 0.10.2, 2 cores).
    """
    dim = matrices.shape[-1]
    index = jnp.arange(dim)

    def step(j, carry):
        rest, root, inverse = carry
        pivot = jnp.sqrt(jnp.maximum(rest[:, j, j], _TINY))[:, None]
        column = jnp.where(index[None] >= j, rest[:, :, j] / pivot, 0.0)
        rest = rest - column[:, :, None] * column[:, None, :]
        root = root.at[:, :, j].set(column)
        # the root's row j is whole by now, and so are the inverse's rows above it
        above = jnp.einsum("kb,kbc->kc", root[:, j, :], inverse)
        row = (jnp.where(index == j, 1.0, 0.0)[None] - above) / pivot
        return rest, root, inverse.at[:, j, :].set(row)

    nothing = jnp.zeros_like(matrices)
    _, root, inverse = jax.lax.fori_loop(0, dim, step, (matrices, nothing, nothing))
    return root, inverse


def rooted(covariance: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Lower roots of covariances, matrices or diagonals, and their inverses."""
    if covariance.ndim == 2:
        root = jnp.sqrt(jnp.maximum(covariance, _SMALLEST_VARIANCE))
        return root, 1.0 / root
    return roots(definite(covariance))


def inverse_rooted(covariance: jax.Array) -> jax.Array:
    """A root of each inverse, ``r @ r.T``, matrices or diagonals."""
    if covariance.ndim == 2:
        return jax.lax.rsqrt(jnp.maximum(covariance, _SMALLEST_VARIANCE))
    return jnp.swapaxes(roots(definite(covariance))[1], -1, -2)
