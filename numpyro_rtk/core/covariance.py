"""Covariances in either form: matrices ``(K, dim, dim)`` or diagonals ``(K, dim)``.

Which form it is follows from the number of axes; K may count levels, edges or modes.
"""

import jax
import jax.numpy as jnp

__all__ = ["definite", "diagonal_of", "like", "roots", "shrunk"]


def diagonal_of(matrices: jax.Array) -> jax.Array:
    """The variances ``(K, dim)`` of covariances in either form."""
    if matrices.ndim == 2:
        return matrices
    return jnp.diagonal(matrices, axis1=-2, axis2=-1)


def like(scalars: jax.Array, rows: jax.Array) -> jax.Array:
    """``(K,)`` with as many axes as the rows have."""
    return scalars.reshape((-1,) + (1,) * (rows.ndim - 1))


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
    variance = jnp.maximum(jnp.diagonal(covariance, axis1=-2, axis2=-1), 1e-30)
    sd = jnp.sqrt(variance)
    # of two or three draws a variance may be rounded to below 0
    correlation = jnp.clip(covariance / (sd[:, :, None] * sd[:, None, :]), -1.0, 1.0)
    off = 1.0 - jnp.eye(dim, dtype=covariance.dtype)[None]
    observed = jnp.sum(jnp.square(correlation) * off, axis=(-2, -1))
    spurious = dim * (dim - 1.0) / jnp.maximum(count, 1.0)
    keep = jnp.clip(1.0 - spurious / jnp.maximum(observed, 1e-12), 0.0, 1.0)
    return covariance * (1.0 - off + jnp.reshape(keep, (-1, 1, 1)) * off)


def definite(matrices: jax.Array) -> jax.Array:
    """With the little on the diagonal that a Cholesky root in float32 needs.

    A part of each coordinate's own variance: a root does not mind different units, and
    where one coordinate is known a million times better the other keeps its size.
    """
    eye = jnp.eye(matrices.shape[-1], dtype=matrices.dtype)[None]
    return matrices + (1e-5 * matrices + 1e-30) * eye


def roots(matrices: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Lower Cholesky roots of ``(K, dim, dim)``, and their inverses.

    Written out, since two batched LAPACK calls at a time can deadlock on the CPU: each
    waits on the one thread pool that both run in (seen with jaxlib 0.10.2, 2 cores).
    """
    dim = matrices.shape[-1]
    index = jnp.arange(dim)

    def column(j, carry):
        rest, root = carry
        pivot = jnp.sqrt(jnp.maximum(rest[:, j, j], 1e-30))[:, None]
        new = jnp.where(index[None] >= j, rest[:, :, j] / pivot, 0.0)
        rest = rest - new[:, :, None] * new[:, None, :]
        return rest, root.at[:, :, j].set(new)

    _, root = jax.lax.fori_loop(0, dim, column, (matrices, jnp.zeros_like(matrices)))

    def row(j, inverse):
        known = jnp.einsum("kb,kbc->kc", root[:, j, :], inverse)  # rows above j
        new = (jnp.where(index == j, 1.0, 0.0)[None] - known) / root[:, j, j][:, None]
        return inverse.at[:, j, :].set(new)

    inverse = jax.lax.fori_loop(0, dim, row, jnp.zeros_like(matrices))
    return root, inverse
