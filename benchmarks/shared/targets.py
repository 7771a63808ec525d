"""Mixtures whose noised densities, draws and mode weights are known in closed form."""

from typing import NamedTuple

import numpy as np

import numpyro_rtk as rtk


class Target(NamedTuple):
    """A density with i.i.d. draws and the assignment of points to modes."""

    name: str
    density: object
    weights: np.ndarray
    assign: object


def most_probable(x, weights, means, covariances) -> np.ndarray:
    """Index of the component that most probably gave ``x``, ``(..., dim)`` to ``(...,)``.

    Weights ``(..., K)``, means ``(..., K, dim)`` and covariances may differ between the
    batches of ``x``.
    """
    delta = np.asarray(x, float)[..., None, :] - means
    precision = np.linalg.inv(covariances)
    distance = np.einsum("...ja,...jab,...jb->...j", delta, precision, delta)
    log_det = np.linalg.slogdet(covariances)[1]
    with np.errstate(divide="ignore"):
        return np.argmax(np.log(weights) - 0.5 * (distance + log_det), axis=-1)


def mixture_target(name, weights, means, covariances) -> Target:
    mixture = rtk.GaussianMixture(weights, means, covariances, standardise=True)
    assign = lambda x: most_probable(x, weights, means, covariances)
    return Target(name, mixture, np.asarray(weights), assign)


def correlated_mixture(
    dim: int, components: int, seed: int = 0, spread: float = 0.29
) -> Target:
    """Unequal modes with correlated components of different widths."""
    rng = np.random.default_rng(seed)
    weights = rng.dirichlet(3.0 * np.ones(components))
    means = rng.normal(size=(components, dim))
    covariances = []
    for _ in range(components):
        axes, _ = np.linalg.qr(rng.normal(size=(dim, dim)))
        sds = spread * rng.uniform(0.5, 1.5, size=dim)
        covariances.append(axes @ np.diag(sds**2) @ axes.T)
    name = f"{components} correlated modes, {dim} d"
    return mixture_target(name, weights, means, np.array(covariances))
