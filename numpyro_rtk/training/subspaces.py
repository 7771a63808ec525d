"""Independent subspaces of the data, and a product of mixtures over them.

Independent component analysis turns the rows into components that are as independent as
a linear map can make them; those that still depend on each other are put together
(independent subspace analysis; Hyvarinen, Hoyer, "Emergence of phase- and shift-invariant
features by decomposition of natural images into independent feature subspaces", Neural
Computation 12 (2000)).
"""

import warnings
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.sparse.csgraph import connected_components

from numpyro_rtk.gaussian_product import NoisedProduct, noised_product
from numpyro_rtk.training.mixture import FoundMixture, best_mixture, is_better

__all__ = ["FoundProduct", "fit_product", "independent_subspaces"]

_ROWS_PER_DIM = 20  # with fewer, components are found in noise
_ICA_ROWS, _ICA_ITERATIONS, _ICA_TOLERANCE = 20_000, 200, 1e-3
_FIRST_ROWS = 4000
_TURN_STEPS, _TURN_RATE, _BATCH = 300, 3e-3, 2048
_SMALLEST_RATIO = 1e-6
_FREQUENCIES = (0.5, 1.0, 2.0, 3.0)
_THRESHOLD, _NOISE = 0.08, 5.0  # of a correlation, and the standard errors beyond it


class FoundProduct(NamedTuple):
    """Independent mixtures, one in each of some orthogonal subspaces ``(dim, m_g)``."""

    subspaces: list[np.ndarray]
    factors: list[FoundMixture]

    def log_density(self, z: np.ndarray) -> np.ndarray:
        """Of rows ``(n, dim)``: ``(n,)``."""
        return np.sum([f.log_density(z @ u) for f, u in self._pairs()], axis=0)

    def refit(self, z: np.ndarray) -> "FoundProduct":
        """Each mixture fitted to rows ``(n, dim)``, from where it is."""
        return self._replace(factors=[f.refit(z @ u) for f, u in self._pairs()])

    def as_base(self) -> NoisedProduct:
        """Followed through the noise."""
        return noised_product(self.subspaces, [f.as_base() for f in self.factors])

    def _pairs(self):
        return zip(self.factors, self.subspaces, strict=True)


def fit_product(
    z: np.ndarray, held_out: np.ndarray, density: np.ndarray
) -> FoundProduct | None:
    """A product of mixtures over independent subspaces, where it is the better base.

    Args:
        z: standardised rows, ``(n, dim)``.
        held_out: standardised rows that were not in ``z``, ``(m, dim)``.
        density: log density of ``held_out`` under the best single mixture, ``(m,)``.

    Returns:
        The product; None where the rows do not split, or where its held-out log density
        is not higher by more than a standard error.
    """
    subspaces = independent_subspaces(z)
    if len(subspaces) == 1:
        return None
    # a few rows first: mixtures along axes that are a little off are a little wrong
    for num in (_FIRST_ROWS, len(z)):
        some, few = z[:num], held_out[:num]
        factors = [best_mixture(some @ u, few @ u) for u in subspaces]
        subspaces = _turned(FoundProduct(subspaces, factors), z)
    found = FoundProduct(subspaces, factors).refit(z)
    return found if is_better(found.log_density(held_out) - density) else None


def _turned(found: FoundProduct, z: np.ndarray) -> list[np.ndarray]:
    """All subspaces turned by one rotation, to the maximum of the rows' likelihood.

    Independent component analysis is a start only: its contrast knows nothing of the
    mixtures. Steps of Adam along the group of rotations, each with two Newton-Schulz
    steps against rounding.
    """
    rows = jnp.asarray(z[: len(z) // _BATCH * _BATCH or None], jnp.float32)
    axes = jnp.asarray(np.concatenate(found.subspaces, axis=1), jnp.float32)
    axes = _climb(found.as_base(), axes, rows)
    ends = np.cumsum([u.shape[1] for u in found.subspaces])
    return np.split(np.asarray(axes, np.float64), ends[:-1], axis=1)


@jax.jit
def _climb(base, axes, rows):
    optimiser = optax.adam(optax.cosine_decay_schedule(_TURN_RATE, _TURN_STEPS))

    which = axes.T @ base.subspaces  # of the axes span a subspace

    def energy(axes, chosen):
        turned = eqx.tree_at(lambda base: base.subspaces, base, axes @ which)
        return -jnp.mean(jax.vmap(turned.log_density, in_axes=(0, None))(chosen, 0.0))

    def step(index, carry):
        axes, state = carry
        chosen = jnp.take(
            rows, index * _BATCH + jnp.arange(_BATCH), axis=0, mode="wrap"
        )
        slope = axes.T @ jax.grad(energy)(axes, chosen)
        turn, state = optimiser.update(slope - slope.T, state)
        axes = axes + axes @ turn
        for _ in range(2):
            axes = 1.5 * axes - 0.5 * axes @ (axes.T @ axes)
        return axes, state

    carry = axes, optimiser.init(axes)
    return jax.lax.fori_loop(0, _TURN_STEPS, step, carry)[0]


def independent_subspaces(z: np.ndarray) -> list[np.ndarray]:
    """Orthogonal subspaces in which the rows are independent, as far as can be seen.

    Args:
        z: rows of mean 0, ``(n, dim)``.

    Returns:
        Orthonormal bases ``(dim, m_g)`` that together span everything; one where the
        rows are too few to tell, or fill no more than a part of the space.
    """
    num_rows, dim = z.shape
    if dim == 1 or num_rows < _ROWS_PER_DIM * dim or _is_singular(z):
        return [np.eye(dim)]
    directions, components = _independent_components(z[:_ICA_ROWS])
    linked = _dependence(components) > _THRESHOLD + _NOISE / np.sqrt(len(components))
    _, label = connected_components(linked, directed=False)
    # orthogonal, and as close as can be: noise is independent along such axes alone
    left, _, right = np.linalg.svd(directions)
    axes = left @ right
    return [axes[:, label == group] for group in range(label.max() + 1)]


def _is_singular(z: np.ndarray) -> bool:
    variances = np.linalg.eigvalsh(z.T @ z)
    return variances[0] < _SMALLEST_RATIO * variances[-1]


def _independent_components(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unit directions, columns of ``(dim, dim)``, and the rows' components ``(n, dim)``."""
    from sklearn.decomposition import FastICA
    from sklearn.exceptions import ConvergenceWarning

    ica = FastICA(
        whiten="unit-variance",
        max_iter=_ICA_ITERATIONS,
        tol=_ICA_TOLERANCE,
        random_state=0,
    )
    with warnings.catch_warnings():
        # directions that are Gaussian never settle; all of them are right
        warnings.simplefilter("ignore", ConvergenceWarning)
        ica.fit(z)
    directions = ica.mixing_ / np.linalg.norm(ica.mixing_, axis=0)
    return directions, ica.transform(z)


def _dependence(y: np.ndarray) -> np.ndarray:
    """How much the columns of ``y`` depend on each other, from 0 to 1, ``(dim, dim)``.

    The largest correlation of a wave of one with a wave of the other: of sines and
    cosines of a few frequencies, all of which are uncorrelated if and only if the two
    are independent.
    """
    dim = y.shape[1]
    y = (y - y.mean(axis=0)) / y.std(axis=0)
    phases = np.concatenate([frequency * y for frequency in _FREQUENCIES], axis=1)
    waves = np.concatenate([np.sin(phases), np.cos(phases)], axis=1)
    num = waves.shape[1] // dim
    correlation = np.abs(np.corrcoef(waves, rowvar=False))
    return correlation.reshape(num, dim, num, dim).max(axis=(0, 2))
