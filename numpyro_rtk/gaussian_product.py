r"""Products of Gaussian mixtures over orthogonal subspaces, followed through the noise.

Where the data are independent in orthogonal subspaces with orthonormal bases :math:`U_g`,

.. math:: p_t(z) = \prod_g p_{t,g}(U_g^T z),

since the noise is independent in them too. With a mixture of K components in each of G
subspaces this is a mixture of K**G, which no list could hold: what catalogues,
block-structured parameters and fields in their natural basis look like.
"""

import operator
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from numpyro_rtk._checks import check_orthogonal
from numpyro_rtk.gaussians import NoisedMixture

__all__ = ["NoisedProduct", "noised_product"]


class NoisedProduct(eqx.Module):
    """Independent mixtures, one in each of G orthogonal subspaces.

    The subspaces are filled up to one size ``m``, and the mixtures to one number K, so that
    one batched call serves all: with axes of zeros, along which a component is N(0, 1) at
    every noise level, and with components of weight 0.

    Attributes:
        subspaces: their orthonormal bases, columns of ``(G, dim, m)``.
        factors: the mixtures, every array with a leading G.
    """

    subspaces: jax.Array
    factors: NoisedMixture

    def log_density(self, z: jax.Array, t: jax.Array | float) -> jax.Array:
        """Log density of ``z_t``; ``z`` (dim,), ``t`` () -> ()."""
        num, dim, size = self.subspaces.shape
        each = jax.vmap(NoisedMixture.log_density, in_axes=(0, 0, None))
        # each axis of zeros has added that of N(0, 1) at 0
        filled = 0.5 * np.log(2.0 * np.pi) * (num * size - dim)
        return jnp.sum(each(self.factors, self._along(z), t)) + filled

    def score(self, z: jax.Array, t: jax.Array | float) -> jax.Array:
        """Gradient of the log density; ``z`` (dim,), ``t`` () -> (dim,)."""
        each = jax.vmap(NoisedMixture.score, in_axes=(0, 0, None))
        scores = each(self.factors, self._along(z), t)
        return jnp.einsum("gm,gdm->d", scores, self.subspaces)

    def _along(self, z: jax.Array) -> jax.Array:
        """In each subspace, ``(G, m)``."""
        return jnp.einsum("d,gdm->gm", z, self.subspaces)

    def sample(
        self, key: jax.Array, t: jax.Array | float, sample_shape: tuple[int, ...] = ()
    ) -> jax.Array:
        """Independent draws at OU time ``t``, ``sample_shape + (dim,)``."""
        draw = lambda factor, key: factor.sample(key, t, sample_shape)
        along = jax.vmap(draw)(self.factors, jr.split(key, len(self.subspaces)))
        return jnp.einsum("gdm,g...m->...d", self.subspaces, along)

    def check(self, name: str) -> None:
        """Raise a ValueError, about ``name``, unless this is such a product."""
        subspaces = np.asarray(self.subspaces)
        sizes = np.sum(subspaces.any(axis=1), axis=1)
        pairs = zip(subspaces, sizes, strict=True)
        axes = np.concatenate([basis[:, :size] for basis, size in pairs], axis=1)
        if axes.shape[0] != axes.shape[1]:
            raise ValueError(
                f"`{name}.subspaces` must together have {axes.shape[0]} axes that are "
                f"not 0, those of a group first; got {axes.shape[1]}."
            )
        check_orthogonal(f"{name}.subspaces", axes)
        for group, size in enumerate(sizes):
            factor = jax.tree.map(operator.itemgetter(group), self.factors)
            label = f"{name}.factors[{group}]"
            own = _emptied(factor, int(size))
            own.check(label)
            refilled = _filled(own, *factor.centres.shape)
            for part in ("axes", "centres", "variances"):
                if not np.array_equal(getattr(refilled, part), getattr(factor, part)):
                    raise ValueError(
                        f"`{label}.{part}` must be N(0, 1) along axes that fill up."
                    )


def noised_product(
    subspaces: Sequence[np.ndarray], factors: Sequence[NoisedMixture]
) -> NoisedProduct:
    """From orthonormal bases ``(dim, m_g)`` that span all, and a mixture in each."""
    size = max(basis.shape[1] for basis in subspaces)
    num = max(len(factor.log_weights) for factor in factors)
    filled = [_filled(factor, num, size) for factor in factors]
    padded = [np.pad(u, [(0, 0), (0, size - u.shape[1])]) for u in subspaces]
    return NoisedProduct(
        subspaces=jnp.asarray(np.stack(padded), jnp.float32),
        factors=jax.tree.map(lambda *arrays: jnp.stack(arrays), *filled),
    )


def _filled(factor: NoisedMixture, num: int, size: int) -> NoisedMixture:
    """The same mixture with ``num`` components in ``size`` dimensions."""
    own, dim = factor.centres.shape
    more, wider = num - own, size - dim
    axes = factor.axes.reshape(dim, own, dim)
    axes = jnp.pad(axes, [(0, wider), (0, more), (0, wider)])
    pad = lambda array, value: jnp.pad(
        array, [(0, more), (0, wider)], constant_values=value
    )
    return NoisedMixture(
        log_weights=jnp.pad(factor.log_weights, (0, more), constant_values=-jnp.inf),
        axes=axes.reshape(size, num * size),
        centres=pad(factor.centres, 0.0),
        variances=pad(factor.variances, 1.0),
    )


def _emptied(factor: NoisedMixture, size: int) -> NoisedMixture:
    """The first ``size`` dimensions of what :func:`_filled` has made."""
    num, wide = factor.centres.shape
    axes = factor.axes.reshape(wide, num, wide)[:size, :, :size]
    return NoisedMixture(
        log_weights=factor.log_weights,
        axes=axes.reshape(size, num * size),
        centres=factor.centres[:, :size],
        variances=factor.variances[:, :size],
    )
